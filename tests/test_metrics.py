"""The request instruments as Prometheus sees them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from wings_proxy.api_errors import ErrorCode
from wings_proxy.exchange import AbortPhase, Exchange, UpstreamFault
from wings_proxy.metrics import Histogram, RequestMetrics


def lines(metrics: RequestMetrics) -> set[str]:
    return {line for line in generate_latest(metrics.registry).decode().splitlines() if not line.startswith("#")}


def test_closed_label_sets_exist_at_zero_from_the_start() -> None:
    page = lines(RequestMetrics(["/v1/models", "/v1/chat/completions"]))
    assert 'wings_requests_total{code="200",route="/v1/chat/completions"} 0.0' in page
    assert 'wings_requests_total{code="503",route="/v1/chat/completions"} 0.0' in page
    assert 'wings_inter_chunk_seconds_count{route="/v1/chat/completions"} 0.0' in page
    for phase in AbortPhase:
        assert f'wings_client_aborts_total{{phase="{phase}"}} 0.0' in page
    for fault in UpstreamFault:
        assert f'wings_upstream_errors_total{{kind="{fault}"}} 0.0' in page
    for code in ErrorCode:
        assert f'wings_api_errors_total{{code="{code}"}} 0.0' in page
    assert {"wings_upstream_retries_total 0.0", "wings_requests_in_flight 0.0"} <= page


def test_a_route_of_the_rest_appears_with_its_first_request() -> None:
    metrics = RequestMetrics(["/v1/models", "/v1/embeddings"])
    assert not any("/v1/models" in line for line in lines(metrics))
    metrics.route("/v1/models").gap.observe(0.01)
    page = lines(metrics)
    assert 'wings_requests_total{code="200",route="/v1/models"} 0.0' in page
    assert 'wings_inter_chunk_seconds_count{route="/v1/models"} 1.0' in page
    assert not any("/v1/embeddings" in line for line in page)


def test_a_request_is_counted_once_it_ended() -> None:
    metrics = RequestMetrics(["/v1/models"])
    exchange = Exchange("/v1/models", "GET", "id", started=10.0, status=200, received_bytes=3, sent_bytes=70)
    exchange.retried = 1
    metrics.count(exchange, 10.04)
    page = lines(metrics)
    assert 'wings_requests_total{code="200",route="/v1/models"} 1.0' in page
    assert 'wings_request_bytes_total{route="/v1/models"} 3.0' in page
    assert 'wings_response_bytes_total{route="/v1/models"} 70.0' in page
    assert 'wings_request_duration_seconds_bucket{le="0.025",route="/v1/models"} 0.0' in page
    assert 'wings_request_duration_seconds_bucket{le="0.05",route="/v1/models"} 1.0' in page
    assert "wings_upstream_retries_total 1.0" in page


def test_how_it_failed_is_counted_too() -> None:
    metrics = RequestMetrics([])
    exchange = Exchange("/nobody/knows", "POST", "id", started=0.0, status=499)
    exchange.abort_phase = AbortPhase.WAIT
    exchange.fault = UpstreamFault.TRUNCATED
    exchange.error_code = ErrorCode.UPSTREAM_ERROR
    metrics.count(exchange, 1.0)
    assert {
        'wings_requests_total{code="499",route="other"} 1.0',
        'wings_client_aborts_total{phase="wait"} 1.0',
        'wings_upstream_errors_total{kind="truncated"} 1.0',
        'wings_api_errors_total{code="upstream_error"} 1.0',
    } <= lines(metrics)


def test_a_status_of_the_engine_nobody_foresaw() -> None:
    metrics = RequestMetrics([])
    metrics.count(Exchange("other", "GET", "id", started=0.0, status=418), 1.0)
    assert 'wings_requests_total{code="418",route="other"} 1.0' in lines(metrics)


def test_gauges_are_read_when_scraped() -> None:
    metrics = RequestMetrics([])
    metrics.in_flight = lambda: 7
    metrics.idle_connections = lambda: 3
    metrics.connections_opened = lambda: 9
    assert {
        "wings_requests_in_flight 7.0",
        "wings_upstream_connections_idle 3.0",
        "wings_upstream_connections_opened_total 9.0",
    } <= lines(metrics)


def test_a_value_on_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.1", 2), ("1.0", 4), ("+Inf", 5)]
    assert histogram.sum == pytest.approx(8.65)


def test_the_registry_may_be_shared_but_not_with_a_second_set() -> None:
    registry = CollectorRegistry()
    assert RequestMetrics([], registry).registry is registry
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        RequestMetrics([], registry)


def test_the_openmetrics_page_ends_as_it_must() -> None:
    page: bytes = openmetrics(RequestMetrics(["/v1/models"]).registry)  # type: ignore[no-untyped-call]
    assert page.endswith(b"# EOF\n")
