"""What requests share on their way to the engine: limits, the pool, the gate, where they are counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from wings_proxy.proxy.admission import ForwardSettings
from wings_proxy.proxy.api_errors import ApiError
from wings_proxy.proxy.api_keys import Authorizer
from wings_proxy.proxy.exchange import Exchange, UpstreamFault
from wings_proxy.proxy.headers import CREDENTIALS, NOT_TO_ENGINE
from wings_proxy.proxy.inflight import Inflight
from wings_proxy.proxy.known_heads import KnownHeads
from wings_proxy.proxy.outbox import Outbox
from wings_proxy.proxy.relay import Relay
from wings_proxy.proxy.request_metrics import RequestMetrics
from wings_proxy.proxy.upload_pace import UploadPace
from wings_proxy.proxy.upstream import LOOPBACK, Pool


class Gate(Protocol):
    """Whether the engine's present run takes requests."""

    @property
    def open(self) -> bool:
        """True if a request may go on at once."""

    async def admit(self) -> ApiError | None:
        """Wait until it is known whether a request may go on; return the refusal, or None."""


class Forwarder:
    """What the requests of one process share on their way to the engine."""

    def __init__(
        self,
        settings: ForwardSettings,
        *,
        pool: Pool,
        inflight: Inflight,
        metrics: RequestMetrics,
        gate: Gate,
        authorize: Authorizer | None = None,
        on_fault: Callable[[UpstreamFault], None] | None = None,
        access_log: Callable[[Exchange, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the limits and what works within them.

        Without *authorize* every request passes, its credentials untouched. *on_fault* hears of each fault of the
        engine at once; it must not block. *access_log* is given each exchange and the time of its end. *clock* is
        finer than the loop's: uvloop's counts whole milliseconds and stands still within a pass.
        """
        self.settings = settings
        self.pool = pool
        self.inflight = inflight
        self.outbox = Outbox(pool.loop)
        self.upload_pace = UploadPace(pool.loop)
        self.metrics = metrics
        metrics.in_flight = lambda: inflight.count
        metrics.idle_connections = lambda: pool.idle
        metrics.connections_opened = lambda: pool.opened
        self.gate = gate
        self.authorize = authorize
        self.on_fault = on_fault
        self.access_log = access_log
        self.clock = clock
        self.host = f"{LOOPBACK}:{settings.engine_port}".encode()
        keeps_credentials = authorize is None and settings.engine_authorization is None
        self.dropped = NOT_TO_ENGINE if keeps_credentials else NOT_TO_ENGINE | CREDENTIALS
        self.known_heads = KnownHeads(self.dropped)
        self.relays: set[Relay] = set()
        self.closing = False
        """Set while draining: answers then end their client's connection."""

    def cut_all(self) -> None:
        """End every answer now, each in the honest way of its kind: the drain deadline has passed."""
        for relay in tuple(self.relays):
            relay.fail(UpstreamFault.CUT, "this server is shutting down")
