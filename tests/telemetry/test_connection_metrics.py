"""The clients' connections, as Prometheus sees them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from wings_proxy.server.connection_cap import RESERVE, ConnectionCap
from wings_proxy.telemetry.connection_metrics import ConnectionMetrics


def test_what_the_cap_counts_is_exported() -> None:
    registry, cap = CollectorRegistry(), ConnectionCap[int](2)
    ConnectionMetrics(registry, cap)
    assert registry.get_sample_value("wings_client_connections") == 0
    assert registry.get_sample_value("wings_client_connections_limit") == 2
    for number in range(3):
        cap.admit(number)
    assert registry.get_sample_value("wings_client_connections_closed_total", {"reason": "evicted"}) == 1
    cap.busy(1)
    cap.busy(2)
    for number in range(3, 3 + RESERVE + 1):
        cap.admit(number)
    assert registry.get_sample_value("wings_client_connections") == 2 + RESERVE
    assert registry.get_sample_value("wings_client_connections_closed_total", {"reason": "refused"}) == 1
