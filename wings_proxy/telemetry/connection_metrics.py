"""The clients' connections in numbers: how many there are, may be, and had to go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Connections(Protocol):
    """Who counts them: `server.connection_cap`."""

    most: int
    evicted: int
    refused: int

    def __len__(self) -> int: ...


class ConnectionMetrics(Collector):
    """Reads the counts when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry, connections: Connections) -> None:
        self._connections = connections
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Return the families, so that a registry notices a clash of names."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Return the families as of now."""
        connections = self._connections
        yield GaugeMetricFamily(
            "wings_client_connections", "Open connections of clients, probes' included.", value=len(connections)
        )
        yield GaugeMetricFamily(
            "wings_client_connections_limit",
            "How many there may be, without the reserve for probes.",
            value=connections.most,
        )
        closed = CounterMetricFamily(
            "wings_client_connections_closed",
            "Connections closed because there were too many: evicted, the one idle longest made room; refused, all "
            "were busy.",
            labels=["reason"],
        )
        closed.add_metric(["evicted"], connections.evicted)
        closed.add_metric(["refused"], connections.refused)
        yield closed
