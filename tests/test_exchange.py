"""The closed sets that become label values."""

from __future__ import annotations

from wings_proxy.exchange import AbortPhase, Exchange, UpstreamFault


def test_label_values_read_like_their_names() -> None:
    for member in (*AbortPhase, *UpstreamFault):
        assert member.value == member.name.lower()


def test_nothing_is_known_of_a_request_that_just_came() -> None:
    exchange = Exchange("/v1/models", "GET", "id", started=1.0)
    assert exchange.status == exchange.sent_bytes == exchange.received_bytes == exchange.chunks == 0
    assert (exchange.first_byte, exchange.abort_phase, exchange.fault, exchange.error_code) == (None,) * 4
