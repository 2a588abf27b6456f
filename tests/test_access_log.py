"""The access log's record."""

from __future__ import annotations

import logging

import pytest

from wings_proxy.access_log import log_exchange
from wings_proxy.api_errors import ErrorCode
from wings_proxy.exchange import AbortPhase, Exchange, UpstreamFault


def logged(exchange: Exchange, caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    with caplog.at_level(logging.INFO, "wings_proxy.access"):
        log_exchange(exchange, ended=12.5)
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("wings_proxy.access", logging.INFO, "request")
    fields = record.__dict__["fields"]
    assert isinstance(fields, dict)
    return fields


def test_a_request_that_went_well(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Exchange("/v1/models", "GET", "id-1", started=10.0, status=200, first_byte=10.25)
    exchange.received_bytes, exchange.sent_bytes, exchange.chunks = 3, 70, 2
    assert logged(exchange, caplog) == {
        "request_id": "id-1",
        "route": "/v1/models",
        "method": "GET",
        "status": 200,
        "duration_seconds": 2.5,
        "ttft_seconds": 0.25,
        "request_bytes": 3,
        "response_bytes": 70,
        "chunks": 2,
    }


def test_one_that_did_not(caplog: pytest.LogCaptureFixture) -> None:
    exchange = Exchange("other", "POST", "id-1", started=10.0, status=499)
    exchange.abort_phase = AbortPhase.STALL
    exchange.fault = UpstreamFault.TRUNCATED
    exchange.error_code = ErrorCode.UPSTREAM_ERROR
    fields = logged(exchange, caplog)
    assert fields["ttft_seconds"] is None
    assert fields["abort_phase"] == "stall"
    assert fields["upstream_error"] == "truncated"
    assert fields["error_code"] == "upstream_error"


def test_nothing_is_made_for_a_log_that_is_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wings_proxy.access"):
        log_exchange(Exchange("other", "POST", "id-1", started=0.0), ended=1.0)
    assert caplog.records == []
