"""The proxy's own request instruments, in a registry of their own.

Counting happens once per event of every stream, so an instrument is a plain attribute of the route's object
and not a look-up by labels; the Prometheus families are made when somebody scrapes. One event loop, hence no
locks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.exchange import AbortPhase, Exchange, UpstreamFault

_Value = TypeVar("_Value", bound=StrEnum)

OTHER_ROUTE = "other"
MAIN_ROUTES = ("/v1/chat/completions", "/v1/completions")
"""Shown at 0 from the start. The other routes appear with their first request: all of them would be 2,000 series a pod,
and 20 ms of the event loop a scrape."""

_COMMON_STATUSES = (200, 400, 401, 404, 413, 429, 499, 500, 502, 503, 504)
# An engine can answer with any number: what has no meaning of its own is counted by its class.
_CODES: Mapping[int, str] = {status: str(status) for status in (*HTTPStatus, 499)}


def _code(status: int) -> str:
    return _CODES.get(status) or (f"{status // 100}xx" if 100 <= status < 600 else "other")


_DURATION_BOUNDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
)
_FIRST_TOKEN_BOUNDS = (
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    10.0,
    25.0,
    60.0,
)
_GAP_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)


class Histogram:
    """Counts per bucket, sum and nothing else; `observe` is in the hot path."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count *value*, in seconds."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def counts(self) -> tuple[int, ...]:
        """How often each bucket was hit, the unbounded one last."""
        return tuple(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as (upper bound, count), the last one `+Inf`."""
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each bucket was hit; one count more than upper bounds, the last without bound. Seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """All routes together since the start."""

    ended: int
    aborted: int
    first_token: Counts
    gap: Counts


class RouteMetrics:
    """The instruments of one route."""

    __slots__ = ("duration", "first_token", "gap", "received_bytes", "requests", "sent_bytes")

    def __init__(self) -> None:
        self.requests: dict[int, int] = dict.fromkeys(_COMMON_STATUSES, 0)
        self.duration = Histogram(_DURATION_BOUNDS)
        self.first_token = Histogram(_FIRST_TOKEN_BOUNDS)
        self.gap = Histogram(_GAP_BOUNDS)
        self.received_bytes = 0
        self.sent_bytes = 0

    def arrived(self, exchange: Exchange, now: float, size: int, events: int) -> None:
        """Count *size* bytes of an answer's body that came at *now*, and the *events* that ended in them."""
        exchange.sent_bytes += size
        exchange.events += events
        if exchange.first_byte is None:
            exchange.first_byte = now
            if exchange.is_event_stream:
                self.first_token.observe(now - exchange.started)
        elif exchange.is_event_stream:
            gap, seconds = self.gap, now - exchange.newest_byte  # `observe`, without a call for each token
            gap._counts[bisect_left(_GAP_BOUNDS, seconds)] += 1
            gap.sum += seconds
        exchange.newest_byte = now


class RequestMetrics(Collector):
    """Every instrument of the byte path; `registry` holds them and may take others."""

    def __init__(self, routes: Iterable[str], registry: CollectorRegistry | None = None) -> None:
        """Prepare the closed set of *routes* (templates, never raw paths)."""
        self._known = frozenset((*routes, OTHER_ROUTE))
        self._routes = {route: RouteMetrics() for route in MAIN_ROUTES if route in self._known}
        self.aborts = dict.fromkeys(AbortPhase, 0)
        self.upstream_faults = dict.fromkeys(UpstreamFault, 0)
        self.api_errors = dict.fromkeys(ErrorCode, 0)
        self.retries = 0
        self.in_flight: Callable[[], int] = int
        self.idle_connections: Callable[[], int] = int
        self.connections_opened: Callable[[], int] = int
        self.log_lines_lost: Callable[[], int] = int
        self.registry = registry or CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def count(self, exchange: Exchange, ended: float) -> None:
        """Count one request that ended at monotonic time *ended*."""
        route = self.route(exchange.route)
        route.requests[exchange.status] = route.requests.get(exchange.status, 0) + 1
        route.duration.observe(ended - exchange.started)
        route.received_bytes += exchange.received_bytes
        route.sent_bytes += exchange.sent_bytes
        if exchange.abort_phase is not None:
            self.aborts[exchange.abort_phase] += 1
        if exchange.fault is not None:
            self.upstream_faults[exchange.fault] += 1
        if exchange.error_code is not None:
            self.api_errors[exchange.error_code] += 1
        self.retries += exchange.retried

    def refused(self, code: ErrorCode) -> None:
        """Count an error answer of ours to what was never a request for the engine: bad HTTP, wrong paths, no key."""
        self.api_errors[code] += 1

    def route(self, route: str) -> RouteMetrics:
        """Return the instruments of *route*, those of `other` if it is not one of the closed set."""
        return self._routes.get(route) or self._first_use_of(route)

    def _first_use_of(self, route: str) -> RouteMetrics:
        known = route if route in self._known else OTHER_ROUTE
        return self._routes.setdefault(known, RouteMetrics())

    def totals(self) -> Totals:
        """Return all routes together."""
        routes = self._routes.values()
        return Totals(
            ended=sum(sum(route.requests.values()) for route in routes),
            aborted=sum(self.aborts.values()),
            first_token=Counts(_FIRST_TOKEN_BOUNDS, _sums(route.first_token for route in routes)),
            gap=Counts(_GAP_BOUNDS, _sums(route.gap for route in routes)),
        )

    def describe(self) -> Iterator[Metric]:
        """Name the families without collecting, so that a duplicate is refused when registering."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Make the Prometheus families of this moment."""
        requests = CounterMetricFamily(
            "wings_requests", "Forwarded requests that ended; 499: the client left.", labels=["route", "code"]
        )
        received = CounterMetricFamily("wings_request_bytes", "Bytes of request bodies.", labels=["route"])
        sent = CounterMetricFamily("wings_response_bytes", "Bytes of response bodies.", labels=["route"])
        duration = HistogramMetricFamily(
            "wings_request_duration_seconds", "From the request's head to the answer's end.", labels=["route"]
        )
        first = HistogramMetricFamily(
            "wings_time_to_first_token_seconds",
            "From the request's head to the first byte of an event stream.",
            labels=["route"],
        )
        gap = HistogramMetricFamily(
            "wings_inter_chunk_seconds", "Between two arrivals of an event stream's bytes.", labels=["route"]
        )
        for name, route in self._routes.items():
            codes: Counter[str] = Counter()
            for status, count in route.requests.items():
                codes[_code(status)] += count
            for code, count in codes.items():
                requests.add_metric([name, code], count)
            received.add_metric([name], route.received_bytes)
            sent.add_metric([name], route.sent_bytes)
            duration.add_metric([name], route.duration.buckets(), route.duration.sum)
            first.add_metric([name], route.first_token.buckets(), route.first_token.sum)
            gap.add_metric([name], route.gap.buckets(), route.gap.sum)
        yield from (requests, received, sent, duration, first, gap)
        yield _closed("wings_client_aborts", "Requests the client left, by phase.", "phase", self.aborts)
        yield _closed("wings_upstream_errors", "Faults between proxy and engine.", "kind", self.upstream_faults)
        yield _closed("wings_api_errors", "Error answers of the proxy's own.", "code", self.api_errors)
        yield CounterMetricFamily(
            "wings_upstream_retries", "Requests sent again on another connection.", value=self.retries
        )
        yield CounterMetricFamily(
            "wings_upstream_connections_opened",
            "Connections opened to the engine.",
            value=self.connections_opened(),
        )
        yield GaugeMetricFamily(
            "wings_upstream_connections_idle",
            "Connections to the engine waiting for a request.",
            value=self.idle_connections(),
        )
        yield CounterMetricFamily(
            "wings_log_dropped_lines",
            "Lines of our own log that could not be written: nobody reads standard output, or it is full.",
            value=self.log_lines_lost(),
        )
        yield GaugeMetricFamily(
            "wings_requests_in_flight", "Admitted requests that have not ended.", value=self.in_flight()
        )


def _sums(histograms: Iterable[Histogram]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(histogram.counts for histogram in histograms), strict=True)))


def _closed(name: str, documentation: str, label: str, counts: Mapping[_Value, int]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([value.value], count)
    return family
