"""What our instruments cost: one sidecar under one load, its instruments taken out and put back all the time.

Two neighbouring slices of time make a pair, one with the instruments and one without; which comes first changes from
pair to pair. What else the machine does changes more slowly than that, so both have it. The median over many pairs
comes with an interval that depends on nothing but their order: a slow second costs a few pairs and not the result. The
control, codes exchanged for codes that do the same, shows what the method itself adds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.bench.instruments import Instrument
from tests.bench.measure import running
from tests.bench.peers import OURS, ROOT, Launch, Variant, ours
from tests.bench.report import table
from tests.bench.targets import Verdict
from tests.bench.tools import Slice, Tools
from tests.bench.workloads import Workload

SLICE_SECONDS: Final = 0.06
"""Three of the common ticks: as many events in each."""
LIMIT: Final = 1.05
"""CPU time with the metrics over that without."""
HARD_LIMIT: Final = 1.10
MEASURED: Final = ((Instrument.NOTHING,), (Instrument.METRICS,), (Instrument.METRICS, Instrument.ACCESS_LOG))
LOADS: Final = ("requests", "ticks")
_CONFIDENCE: Final = 0.95
# A slice with less tells more of the scheduler than of us.
_LEAST_UNITS: Final = 20


@dataclass(frozen=True, slots=True)
class Overhead:
    """The CPU time with *instruments* over that without, on one load."""

    workload: Workload
    instruments: tuple[Instrument, ...]
    ratios: tuple[float, ...]
    """Of each pair."""
    per_unit: tuple[float, float]
    """Median µs of CPU for an event or an answer: with, without."""
    failed: int

    @property
    def ratio(self) -> float:
        """The median of the pairs."""
        return statistics.median(self.ratios) if self.ratios else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true median is, at 95 %."""
        return median_interval(self.ratios, _CONFIDENCE)

    def verdict(self, slack: float = 0.0) -> Verdict | None:
        """Say whether the metrics, measured alone, stay within their limit; None of anything else.

        Met or missed if the whole interval says so, failed if all of it is beyond the hard limit, which *slack* widens.
        """
        if self.instruments != (Instrument.METRICS,):
            return None
        low, high = self.interval
        if low > 1 + (HARD_LIMIT - 1) * (1 + slack):
            return Verdict.FAILED
        if high <= LIMIT:
            return Verdict.MET
        return Verdict.MISSED if low > LIMIT else Verdict.UNKNOWN


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return two of the *values* between which their distribution's median is at least so probably; no shape assumed.

    Each value is as likely above the median as below it: how many are below is binomial. Too few values: unbounded.
    """
    ordered, count = sorted(values), len(values)
    outside = 0.0
    found = (-math.inf, math.inf)
    for rank in range(count // 2):
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 1 - confidence:
            break
        found = ordered[rank], ordered[count - 1 - rank]
    return found


def pairs(slices: Sequence[Slice], *, events: bool) -> list[tuple[float, float]]:
    """Return CPU seconds for an event or answer of each pair of slices: with instruments, without.

    The load generator's order is on, off, off, on. A pair in which too little happened is left out, and half a pair.
    """
    found = []
    for number in range(0, len(slices) - 1, 2):
        units = [each[2] if events else each[1] for each in slices[number : number + 2]]
        if min(units) < _LEAST_UNITS:
            continue
        first, second = (each[0] / count for each, count in zip(slices[number : number + 2], units, strict=True))
        found.append((first, second) if number % 4 == 0 else (second, first))
    return found


def measure_overhead(
    tools: Tools,
    workloads: Sequence[Workload],
    cores: frozenset[int],
    *,
    pair_count: int,
    say: Callable[[str], None],
) -> list[Overhead]:
    """Measure each load with the metrics in and out, and with metrics and access log in and out."""
    found = []
    for workload in workloads:
        for instruments in MEASURED:
            say(f"instruments ({', '.join(instruments)}): {workload.title}")
            seconds = 2 * pair_count * SLICE_SECONDS
            with running(switched(instruments), tools.engine_port, cores) as proxy:
                load = tools.load(replace(workload, seconds=seconds), proxy.port, proxy.pids, slices=2 * pair_count)
            times = pairs(load["slices"], events=bool(workload.events))
            found.append(
                Overhead(
                    workload,
                    instruments,
                    tuple(counting / bare for counting, bare in times),
                    (_median_us(counting for counting, _ in times), _median_us(bare for _, bare in times)),
                    load["failed"],
                )
            )
    return found


def _median_us(values: Iterable[float]) -> float:
    listed = list(values)
    return statistics.median(listed) * 1e6 if listed else math.nan


def switched(instruments: Sequence[Instrument]) -> Variant:
    def launch(directory: Path, port: int, engine_port: int) -> Launch:
        plain = ours(ROOT, features=True)(directory, port, engine_port)
        program = ("-m", "tests.bench.switched", ",".join(instruments))
        return replace(plain, argv=(plain.argv[0], *program, "serve"))

    return Variant(OURS, features=True, launch=launch)


def _in_words(verdict: Verdict | None) -> str:
    if verdict is None:
        return "–"
    return "not decided" if verdict is Verdict.UNKNOWN else verdict.value


def overhead_section(measured: Sequence[Overhead]) -> str:
    """Return the table."""
    heads = ["CPU with over without", "load", "µs with", "µs without", "ratio", "95 % interval", "pairs", "verdict"]
    rows = []
    for each in measured:
        low, high = each.interval
        with_, without = each.per_unit
        rows.append(
            [
                ", ".join(each.instruments),
                each.workload.name,
                f"{with_:.1f}",
                f"{without:.1f}",
                f"{each.ratio:.3f}",
                f"{low:.3f}–{high:.3f}",
                str(len(each.ratios)),
                _in_words(each.verdict()),
            ]
        )
    return f"### what the instruments cost (limit for the metrics: {LIMIT:g})\n\n" + table(heads, rows)
