"""The request instruments as Prometheus sees them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.exchange import AbortPhase, Exchange, UpstreamFault
from wings_proxy.proxy.request_metrics import Histogram, RequestMetrics


def lines(metrics: RequestMetrics) -> set[str]:
    return {line for line in generate_latest(metrics.registry).decode().splitlines() if not line.startswith("#")}


def exchange_of(route: str, status: int, *, started: float = 0.0) -> Exchange:
    exchange = Exchange(route, "GET", "id", started)
    exchange.status = status
    return exchange


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
    exchange = exchange_of("/v1/models", 200, started=10.0)
    exchange.received_bytes, exchange.sent_bytes = 3, 70
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
    exchange = exchange_of("/nobody/knows", 499)
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
    metrics.count(exchange_of("other", 418), 1.0)
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


def test_a_status_that_means_nothing_is_counted_by_its_class() -> None:
    metrics = RequestMetrics(["/v1/completions"])
    for status in (*range(100, 1000), 0, 599, 418):
        metrics.count(exchange_of("/v1/completions", status), 1.0)
    page = lines(metrics)
    codes = {line.partition('code="')[2].partition('"')[0] for line in page if line.startswith("wings_requests_total{")}
    assert len(codes) < 75
    assert 'wings_requests_total{code="418",route="/v1/completions"} 2.0' in page
    assert 'wings_requests_total{code="other",route="/v1/completions"} 401.0' in page
    assert 'wings_requests_total{code="499",route="/v1/completions"} 1.0' in page
    assert {"1xx", "2xx", "3xx", "4xx", "5xx", "other"} <= codes
