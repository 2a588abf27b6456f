"""What our proxy must reach, and whether it did."""

from __future__ import annotations

import enum
import statistics
from dataclasses import dataclass
from typing import Final

from tests.bench.peers import ENVOY, NGINX, OURS
from tests.bench.results import IMPORTS, START, Metric, Results


class Verdict(enum.StrEnum):
    """How a figure stands to its target."""

    MET = "met"
    MISSED = "missed"
    FAILED = "beyond the limit"
    UNKNOWN = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit on one of our figures: `factor` times the peer's plus `plus`, but never below `floor`."""

    title: str
    workload: str
    metric: Metric
    peer: str = ""
    """The peer's variant; empty: the limit is `floor` alone."""
    factor: float = 0.0
    plus: float = 0.0
    floor: float = 0.0
    hard_factor: float | None = None
    """Above this multiple of the peer's figure the run fails."""

    @property
    def rule(self) -> str:
        """The limit in words."""
        peer = self.peer.removesuffix(_ON)
        parts = [f"{self.factor:g} × {peer}" if self.factor != 1 else peer] if self.peer else []
        if self.plus:
            parts[-1] += f" + {self.plus:g}"
        if self.floor:
            parts.append(f"{self.floor:g}")
        return " or ".join(parts)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target and what was measured; `limit` and `ratio` are medians over the rounds."""

    target: Target
    verdict: Verdict
    value: float | None = None
    limit: float | None = None
    ratio: float | None = None
    """Ours over the peer's."""


_ON: Final = ", features on"
SUBJECT: Final = OURS + _ON
_NGINX: Final = NGINX + _ON
_ENVOY: Final = ENVOY + _ON

TARGETS: Final = (
    Target(
        title="CPU per event, common ticks",
        workload="ticks",
        metric=Metric.CPU_US,
        peer=_NGINX,
        factor=1.4,
        hard_factor=1.6,
    ),
    Target(title="CPU per event, common ticks", workload="ticks", metric=Metric.CPU_US, peer=_ENVOY, factor=0.85),
    Target(
        title="CPU per event, own phases",
        workload="phases",
        metric=Metric.CPU_US,
        peer=_NGINX,
        factor=1.2,
        hard_factor=1.6,
    ),
    Target(
        title="CPU per request",
        workload="requests",
        metric=Metric.CPU_US,
        peer=_ENVOY,
        factor=0.75,
        hard_factor=0.9,
    ),
    Target(
        title="CPU per request",
        workload="requests",
        metric=Metric.CPU_US,
        peer=_NGINX,
        factor=2.2,
        hard_factor=2.7,
    ),
    Target(title="CPU per 1 MB body", workload="upload", metric=Metric.CPU_US, peer=_NGINX, factor=1.3),
    Target(
        title="latency of one connection, p50",
        workload="single",
        metric=Metric.LATENCY_P50_US,
        peer=_NGINX,
        factor=1.2,
    ),
    Target(
        title="event lag on common ticks, p99",
        workload="ticks",
        metric=Metric.LAG_P99_US,
        peer=_NGINX,
        factor=1.5,
    ),
    Target(
        title="time to first byte at 1,000 streams, p99",
        workload="thousand",
        metric=Metric.FIRST_BYTE_P99_US,
        peer=_NGINX,
        factor=2.0,
        floor=10_000,
    ),
    Target(title="memory, idle, MiB", workload=START, metric=Metric.IDLE_MIB, peer=IMPORTS, factor=1.0, plus=8),
    Target(title="memory at 1,000 streams, MiB", workload="thousand", metric=Metric.RESIDENT_MIB, floor=60),
    Target(title="start-up, ms", workload=START, metric=Metric.START_MS, peer=IMPORTS, factor=1.0, plus=100),
)


def judge(target: Target, results: Results, *, slack: float = 0.0) -> Judgement:
    """Compare with the limit round by round; *slack* widens the hard limit, 0.25 by a quarter."""
    value = results.median(SUBJECT, target.workload, target.metric)
    if value is None:
        return Judgement(target, Verdict.UNKNOWN)
    ours = results.by_round(SUBJECT, target.workload, target.metric)
    theirs = results.by_round(target.peer, target.workload, target.metric) if target.peer else [0.0] * len(ours)
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine is not None and other is not None]
    if not pairs:
        return Judgement(target, Verdict.UNKNOWN, value)
    limits = [max(target.floor, target.factor * other + target.plus) for _, other in pairs]
    share = statistics.median(mine / limit for (mine, _), limit in zip(pairs, limits, strict=True))
    ratio = statistics.median(mine / other for mine, other in pairs) if target.peer else None
    if target.hard_factor is not None and ratio is not None and ratio > target.hard_factor * (1 + slack):
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.MET if share <= 1 else Verdict.MISSED
    return Judgement(target, verdict, value, statistics.median(limits), ratio)
