"""The figures as tables for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tests.bench.peers import NGINX
from tests.bench.results import DIRECT, IMPORTS, START, Metric, Results
from tests.bench.targets import SUBJECT, Judgement, Verdict
from tests.bench.workloads import Workload

_NONE: Final = "–"


def number(value: float | None) -> str:
    """Return a figure with about three digits: 0.123, 4.56, 78.9, 1,234."""
    if value is None:
        return _NONE
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is also readable as it is: the first column left, the others right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([line(heads), f"|{rule}|", *map(line, rows)])


def workload_section(results: Results, workload: Workload, variants: Sequence[str]) -> str:
    """Return one load's table; ratios are to nginx with the features on."""
    unit = "event" if workload.events else "answer"
    columns: list[tuple[str, Callable[[str], str]]] = []

    def add(head: str, metric: Metric, factor: float = 1.0) -> None:
        def cell(variant: str) -> str:
            value = results.median(variant, workload.name, metric)
            return number(None if value is None else value * factor)

        columns.append((head, cell))

    add(f"CPU µs/{unit}", Metric.CPU_US)
    reference = f"{NGINX}, features on"
    columns.append(("× nginx", lambda variant: number(results.ratio(variant, reference, workload.name, Metric.CPU_US))))
    columns.append(("min–max", lambda variant: _span(results.by_round(variant, workload.name, Metric.CPU_US))))
    add(f"{unit}s/s", Metric.PER_SECOND)
    add("CPU %", Metric.CPU_SHARE, 100)
    add("tools %", Metric.TOOLS_SHARE, 100)
    if workload.events:
        # On common ticks the first byte waits for the tick, and an unpaced engine sends when it can.
        if workload.paced and not workload.ticks:
            add("first byte p50 µs", Metric.FIRST_BYTE_P50_US)
            add("p99", Metric.FIRST_BYTE_P99_US)
        add("event lag p50 µs", Metric.LAG_P50_US)
        add("p99", Metric.LAG_P99_US)
    else:
        add("latency p50 µs", Metric.LATENCY_P50_US)
        add("p99", Metric.LATENCY_P99_US)
    add("RSS MiB", Metric.RESIDENT_MIB)
    columns.append(("failed", lambda variant: str(results.failed_of(variant, workload.name))))
    rows = [
        [variant, *(cell(variant) for _, cell in columns)]
        for variant in (*variants, DIRECT)
        if results.has(variant, workload.name)
    ]
    return f"### {workload.title}\n\n" + table(["", *(head for head, _ in columns)], rows)


def start_section(results: Results, variants: Sequence[str]) -> str:
    """Return the table of starting up."""
    heads = ["", "first answer ms", "first forwarded ms", "CPU ms", "idle RSS MiB"]
    metrics = (Metric.LISTEN_MS, Metric.START_MS, Metric.START_CPU_MS, Metric.IDLE_MIB)
    rows = [
        [variant, *(number(results.median(variant, START, metric)) for metric in metrics)]
        for variant in (*variants, IMPORTS)
        if results.has(variant, START)
    ]
    return "### starting up\n\n" + table(heads, rows)


def target_section(judgements: Sequence[Judgement], results: Results) -> str:
    """Return the table of targets."""
    heads = [f"{SUBJECT}", "value", "limit", "= rule", "× peer", "hard limit", "verdict"]
    rows = [
        [
            judgement.target.title,
            number(judgement.value),
            number(judgement.limit),
            judgement.target.rule,
            number(judgement.ratio),
            _NONE if judgement.target.hard_factor is None else f"{judgement.target.hard_factor:g} ×",
            judgement.verdict,
        ]
        for judgement in judgements
    ]
    failed = results.failed_of(SUBJECT)
    verdict = Verdict.FAILED if failed else Verdict.MET
    rows.append(["failed or altered answers", str(failed), "0", "0", _NONE, "0", verdict])
    return "### targets\n\n" + table(heads, rows)


def _span(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{number(min(known))}–{number(max(known))}" if known else _NONE
