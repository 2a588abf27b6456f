"""The access log's line."""

from __future__ import annotations

import json

import pytest

from wings_proxy.proxy.access_log import AccessLog
from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.exchange import AbortPhase, Exchange, UpstreamFault


def logged(*exchanges: Exchange, form: str = "json") -> list[str]:
    lines: list[str] = []
    log = AccessLog(lines.append, form=form, now=lambda: 86400.0625 + len(lines) // 2)
    for exchange in exchanges:
        log(exchange, ended=12.5)
    return lines


def went_well() -> Exchange:
    exchange = Exchange("/v1/models", "GET", "id-1", started=10.0)
    exchange.status, exchange.first_byte = 200, 10.25
    exchange.received_bytes, exchange.sent_bytes, exchange.events = 3, 70, 2
    return exchange


def went_wrong() -> Exchange:
    exchange = Exchange("other", "POST", "id-2", started=10.0)
    exchange.status = 499
    exchange.abort_phase = AbortPhase.STALL
    exchange.fault = UpstreamFault.TRUNCATED
    exchange.error_code = ErrorCode.UPSTREAM_ERROR
    return exchange


def test_a_request_that_went_well() -> None:
    (line,) = logged(went_well())
    assert json.loads(line) == {
        "time": "1970-01-02T00:00:00.062+00:00",
        "level": "info",
        "logger": "wings_proxy.access",
        "message": "request",
        "request_id": "id-1",
        "route": "/v1/models",
        "method": "GET",
        "status": 200,
        "duration_seconds": 2.5,
        "ttft_seconds": 0.25,
        "request_bytes": 3,
        "response_bytes": 70,
        "events": 2,
    }


def test_one_that_did_not() -> None:
    (line,) = logged(went_wrong())
    fields = json.loads(line)
    assert fields["ttft_seconds"] is None
    assert fields["abort_phase"] == "stall"
    assert fields["upstream_error"] == "truncated"
    assert fields["error_code"] == "upstream_error"


@pytest.mark.parametrize("form", ["json", "plain"])
def test_the_time_goes_on(form: str) -> None:
    lines = logged(went_well(), went_well(), went_well(), form=form)
    assert ["00:00:00.062" in line for line in lines] == [True, True, False]
    assert "00:00:01.062" in lines[2]


def test_a_line_for_people() -> None:
    first, second = logged(went_well(), went_wrong(), form="plain")
    assert first == (
        "1970-01-02T00:00:00.062+00:00 info    request request_id=id-1 route=/v1/models method=GET status=200 "
        "duration_seconds=2.500000 ttft_seconds=0.250000 request_bytes=3 response_bytes=70 events=2"
    )
    assert second.endswith(
        "ttft_seconds=null request_bytes=0 response_bytes=0 events=0 "
        "abort_phase=stall upstream_error=truncated error_code=upstream_error"
    )


@pytest.mark.parametrize("form", ["json", "plain"])
def test_the_trace_a_request_belongs_to(form: str) -> None:
    exchange = went_well()
    exchange.trace_id = "0af7651916cd43dd8448eb211c80319c"
    (line,) = logged(exchange, form=form)
    if form == "json":
        assert json.loads(line)["trace_id"] == exchange.trace_id
    else:
        assert line.endswith(f" trace_id={exchange.trace_id}")
