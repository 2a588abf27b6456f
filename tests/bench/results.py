"""The figures of a whole run, and what they say: medians over rounds, and ratios of figures of the same round."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

IMPORTS: Final = "our dependencies' bare imports"
DIRECT: Final = "no proxy"
"""What is measured beside the proxies; of the second, the engine's own CPU time."""
START: Final = "start"
"""The workload of what is measured when a proxy is started."""


class Metric(enum.StrEnum):
    """What is measured; the unit ends the name."""

    CPU_US = "cpu_us"
    """CPU time of the proxy for an event, or for an answer where there are no events."""
    PER_SECOND = "per_second"
    CPU_SHARE = "cpu_share"
    """Of a core, used by the proxy."""
    TOOLS_SHARE = "tools_share"
    """Of a core, used by load generator and engine together; near 1 they are what is measured."""
    LATENCY_P50_US = "latency_p50_us"
    LATENCY_P99_US = "latency_p99_us"
    FIRST_BYTE_P50_US = "first_byte_p50_us"
    FIRST_BYTE_P99_US = "first_byte_p99_us"
    LAG_P50_US = "lag_p50_us"
    """From the engine's sending of an event to the client's reading of it."""
    LAG_P99_US = "lag_p99_us"
    RESIDENT_MIB = "resident_mib"
    FAILED = "failed"
    LISTEN_MS = "listen_ms"
    """From the start of the process to its first answer."""
    START_MS = "start_ms"
    """From the start of the process to its first forwarded answer."""
    START_CPU_MS = "start_cpu_ms"
    IDLE_MIB = "idle_mib"


Round = dict[str, dict[str, dict[Metric, list[float]]]]
"""The figures of one round: variant, workload, metric; more than one where a workload is met more than once."""


@dataclass(slots=True)
class Results:
    """Everything that was measured in one run."""

    rounds: list[Round] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    """The machine's load average at the beginning of each round."""
    failures: list[str] = field(default_factory=list)
    """Of each load with a failed or altered answer, the first one."""

    def add_round(self) -> None:
        """Begin a round."""
        self.rounds.append({})

    def note_load(self, load: float) -> None:
        """Remember the machine's load average."""
        self.loads.append(load)

    def add(self, variant: str, workload: str, figures: Mapping[Metric, float]) -> None:
        """Add figures to the present round."""
        cell = self.rounds[-1].setdefault(variant, {}).setdefault(workload, {})
        for metric, value in figures.items():
            cell.setdefault(metric, []).append(value)

    def has(self, variant: str, workload: str) -> bool:
        """Whether there is any figure of that kind."""
        return any(workload in figures.get(variant, {}) for figures in self.rounds)

    def by_round(self, variant: str, workload: str, metric: Metric) -> list[float | None]:
        """Return a figure for each round, None where it was not measured."""
        cells = [figures.get(variant, {}).get(workload, {}).get(metric) for figures in self.rounds]
        return [statistics.median(cell) if cell else None for cell in cells]

    def median(self, variant: str, workload: str, metric: Metric) -> float | None:
        """Return the median over the rounds, None without any figure."""
        values = [value for value in self.by_round(variant, workload, metric) if value is not None]
        return statistics.median(values) if values else None

    def ratio(self, variant: str, other: str, workload: str, metric: Metric) -> float | None:
        """Return the median of *variant*'s figure over *other*'s of the same round."""
        pairs = zip(self.by_round(variant, workload, metric), self.by_round(other, workload, metric), strict=True)
        ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
        return statistics.median(ratios) if ratios else None

    def failed_of(self, variant: str, workload: str | None = None) -> int:
        """Answers of one proxy that failed or were altered, of one load or of all."""
        cells = [
            cell
            for figures in self.rounds
            for name, cell in figures.get(variant, {}).items()
            if workload is None or name == workload
        ]
        return int(sum(sum(cell.get(Metric.FAILED, ())) for cell in cells))
