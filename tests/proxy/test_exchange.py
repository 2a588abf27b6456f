"""The closed sets that become label values."""

from __future__ import annotations

import pytest

from wings_proxy.proxy.exchange import AbortPhase, Exchange, UpstreamFault


def test_label_values_read_like_their_names() -> None:
    for member in (*AbortPhase, *UpstreamFault):
        assert member.value == member.name.lower()


def test_nothing_is_known_of_a_request_that_just_came() -> None:
    exchange = Exchange("/v1/models", "GET", "id", started=1.0)
    assert exchange.status == exchange.sent_bytes == exchange.received_bytes == exchange.events == 0
    assert (exchange.first_byte, exchange.abort_phase, exchange.fault, exchange.error_code) == (None,) * 4


def test_a_request_went_well_if_there_is_nothing_to_say_about_its_end() -> None:
    exchange = Exchange("/v1/models", "GET", "id", started=1.0, trace_id="0af7651916cd43dd8448eb211c80319c")
    assert exchange.went_well
    exchange.abort_phase = AbortPhase.STREAM
    assert not exchange.went_well


@pytest.mark.parametrize(
    ("method", "route", "works"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/tokenize", False),
        ("GET", "/v1/models", False),
        ("GET", "/v1/chat/completions", False),
    ],
)
def test_what_an_engine_answers_by_its_server_alone_asks_for_no_work(method: str, route: str, works: bool) -> None:
    assert Exchange(route, method, "id", started=1.0).asks_for_work is works


def test_a_request_was_given_up_if_the_engine_had_it_and_somebody_did_not_wait_for_the_end() -> None:
    def given_up(*, phase: AbortPhase | None = None, fault: UpstreamFault | None = None) -> bool:
        exchange = Exchange("/v1/completions", "POST", "id", started=1.0)
        exchange.abort_phase, exchange.fault = phase, fault
        return exchange.given_up

    assert [phase for phase in AbortPhase if given_up(phase=phase)] == [AbortPhase.WAIT, AbortPhase.STREAM]
    late = [UpstreamFault.FIRST_BYTE_TIMEOUT, UpstreamFault.IDLE_TIMEOUT]
    assert [fault for fault in UpstreamFault if given_up(fault=fault)] == late
    assert not given_up()
