"""The loads that are measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One load: connections that each send the next request when the answer before is complete.

    `events` makes the answers event streams, `interval_us` paces them; 0 leaves them as fast as they go.
    """

    name: str
    title: str
    connections: int
    seconds: float
    """The counted window."""
    warmup_seconds: float = 0.4
    ramp_seconds: float = 0.0
    """Connections start evenly over this time; for paced streams about as long as a stream."""
    events: int = 0
    interval_us: int = 0
    ticks: bool = False
    """All streams emit at common times, as an engine's batch does at each step; else each at a phase of its own."""
    answer_bytes: int = 600
    upload_bytes: int = 300
    """Of a request's body: this many, or up to 915 more."""
    same: bool = False
    """Whether all requests are the same, byte for byte; else lengths and request ids differ, as a real client's do."""
    two_writes: bool = False
    """Whether the client writes head and body one after the other, as openai-python does; else together."""
    bare_too: bool = True
    """Whether it is also measured with the features off."""
    quick: bool = True
    """Whether the quick mode has it."""

    @property
    def paced(self) -> bool:
        """Whether the engine, not the proxy, sets the speed."""
        return self.interval_us > 0

    def scaled(self, factor: float) -> Workload:
        """Return the same load with a shorter window."""
        return replace(self, seconds=self.seconds * factor)


WORKLOADS: Final = (
    Workload(name="requests", title="plain 600-byte answers, 32 connections", connections=32, seconds=1.5),
    Workload(
        name="two-writes",
        title="plain answers, 32 connections, head and body written one after the other",
        connections=32,
        seconds=1.5,
        two_writes=True,
        quick=False,
    ),
    Workload(
        name="identical",
        title="plain answers, 32 connections, every request the same bytes",
        connections=32,
        seconds=1.5,
        same=True,
        bare_too=False,
        quick=False,
    ),
    Workload(
        name="ticks",
        title="256 streams, an event every 20 ms, all at the same tick",
        connections=256,
        seconds=2.0,
        warmup_seconds=1.2,
        ramp_seconds=1.0,
        events=100,
        interval_us=20_000,
        ticks=True,
    ),
    Workload(
        name="phases",
        title="256 streams, an event every 10 ms, each at its own phase",
        connections=256,
        seconds=1.5,
        warmup_seconds=0.8,
        ramp_seconds=0.6,
        events=100,
        interval_us=10_000,
    ),
    Workload(
        name="unpaced",
        title="streams of 128 events as fast as they go, 32 connections",
        connections=32,
        seconds=1.2,
        events=128,
        quick=False,
    ),
    Workload(
        name="thousand",
        title="1,000 streams, an event every 50 ms",
        connections=1000,
        seconds=4.0,
        # The window opens while connections still come: their first bytes are part of the figure.
        warmup_seconds=1.5,
        ramp_seconds=3.0,
        events=60,
        interval_us=50_000,
        bare_too=False,
        quick=False,
    ),
    Workload(
        name="upload",
        title="request bodies of 1 MB, 8 connections",
        connections=8,
        seconds=1.5,
        upload_bytes=1_000_000,
        same=True,
    ),
    Workload(name="single", title="plain answers, one connection", connections=1, seconds=1.2),
)
