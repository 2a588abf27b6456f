"""`make bench`, or `python -m tests.bench`: measure our proxy beside the others and judge it by its targets."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.measure import run_rounds
from tests.bench.overhead import LOADS, Overhead, measure_overhead, overhead_section
from tests.bench.peers import ROOT, MissingPeerError, Variant, find_envoy, find_nginx, variants
from tests.bench.report import start_section, target_section, workload_section
from tests.bench.results import Results
from tests.bench.targets import SUBJECT, TARGETS, Judgement, Verdict, judge
from tests.bench.tools import running_tools
from tests.bench.workloads import WORKLOADS, Workload

_EXIT_LIMIT: Final = 1
_EXIT_MISSING: Final = 2
_OPEN_FILES: Final = 65_536
_QUICK_ROUNDS: Final = 3
_QUICK_WINDOW: Final = 0.6
_QUICK_SLACK: Final = 0.25
_PAIRS: Final = 300
_BUSY_TOOLS: Final = 0.9


def main(argv: Sequence[str]) -> int:
    """Run the comparison; return the exit code."""
    options = _parse(argv)
    began = time.monotonic()
    results = Results()
    chosen = [workload for workload in WORKLOADS if not options.workloads or workload.name in options.workloads]
    if options.quick:
        chosen = [workload.scaled(_QUICK_WINDOW) for workload in chosen if workload.quick or options.workloads]
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else 5)
    slack = options.slack if options.slack is not None else _QUICK_SLACK if options.quick else 0.0
    proxy_cores, tool_cores = _share_cores()
    _raise_open_files()
    if options.instruments:
        return _instruments(options, proxy_cores, tool_cores, slack)
    try:
        found = variants(
            nginx=find_nginx(options.nginx), envoy=find_envoy(options.envoy), compare=tuple(options.compare)
        )
        if options.quick:
            found = [variant for variant in found if variant.complete]
        with running_tools(options.cache, tool_cores) as tools:
            os.sched_setaffinity(0, tool_cores)
            run_rounds(results, tools, found, chosen, proxy_cores, rounds, _say)
    except MissingPeerError as error:
        print(error, file=sys.stderr)
        return _EXIT_MISSING
    judgements = [judge(target, results, slack=slack) for target in TARGETS]
    setting = f"{_machine()}; {rounds} rounds, medians; load average "
    setting += f"{', '.join(f'{load:.1f}' for load in results.loads)}; {time.monotonic() - began:.0f} s"
    print(_report(results, chosen, found, judgements, setting))
    _write_json(options.json, results, judgements, setting)
    print(f"\nThe figures of every round: {options.json}")
    return exit_code(results, judgements, gate=options.gate)


def _instruments(
    options: argparse.Namespace, proxy_cores: frozenset[int], tool_cores: frozenset[int], slack: float
) -> int:
    """Measure what the instruments cost, and nothing else."""
    began = time.monotonic()
    chosen = [workload for workload in WORKLOADS if workload.name in (options.workloads or LOADS)]
    try:
        with running_tools(options.cache, tool_cores) as tools:
            os.sched_setaffinity(0, tool_cores)
            measured = measure_overhead(tools, chosen, proxy_cores, pair_count=options.pairs, say=_say)
    except MissingPeerError as error:
        print(error, file=sys.stderr)
        return _EXIT_MISSING
    print(f"\n{_machine()}; load average {os.getloadavg()[0]:.1f}; {time.monotonic() - began:.0f} s\n")
    print(overhead_section(measured))
    return overhead_exit_code(measured, slack=slack, gate=options.gate)


def overhead_exit_code(measured: Sequence[Overhead], *, slack: float, gate: str) -> int:
    """Return 1 if the instruments cost more than the gate allows, or an answer was wrong; else 0."""
    verdicts = {each.verdict(slack) for each in measured}
    failing = {"limits": {Verdict.FAILED}, "targets": {Verdict.FAILED, Verdict.MISSED}, "nothing": set()}[gate]
    return _EXIT_LIMIT if verdicts & failing or (gate != "nothing" and any(each.failed for each in measured)) else 0


def _machine() -> str:
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()} of {sys.base_prefix}"
    )


def _report(
    results: Results,
    workloads: Sequence[Workload],
    measured: Sequence[Variant],
    judgements: Sequence[Judgement],
    setting: str,
) -> str:
    names = [variant.name for variant in measured]
    sections = [f"\n{setting}", *(workload_section(results, workload, names) for workload in workloads)]
    sections += [start_section(results, names), target_section(judgements, results)]
    if results.failures:
        sections.append("failed or altered answers, the first of each load:\n" + "\n".join(results.failures))
    return "\n\n".join(sections)


def _write_json(path: Path, results: Results, judgements: Sequence[Judgement], setting: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "setting": setting,
        "targets": [
            {
                "title": judgement.target.title,
                "rule": judgement.target.rule,
                "verdict": judgement.verdict,
                "value": judgement.value,
                "limit": judgement.limit,
                "ratio": judgement.ratio,
            }
            for judgement in judgements
        ],
        "failures": results.failures,
        "loads": results.loads,
        "rounds": results.rounds,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def exit_code(results: Results, judgements: Sequence[Judgement], *, gate: str) -> int:
    """Return 1 if something is worse than the gate allows: beyond the `limits`, off the `targets`; else 0."""
    failing = {"limits": {Verdict.FAILED}, "targets": {Verdict.FAILED, Verdict.MISSED}, "nothing": set()}[gate]
    bad = any(judgement.verdict in failing for judgement in judgements)
    return _EXIT_LIMIT if bad or (results.failed_of(SUBJECT) and gate != "nothing") else 0


def _share_cores() -> tuple[frozenset[int], frozenset[int]]:
    """Return the proxy's core and the tools': one each if there are two, so that the tools never take the proxy's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return frozenset(cores), frozenset(cores)
    return frozenset(cores[:1]), frozenset(cores[1:])


def _raise_open_files() -> None:
    """Let proxies and tools have two thousand connections and more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Our proxy beside nginx, Envoy and a naive one.")
    parser.add_argument("--quick", action="store_true", help="three minutes: shorter loads, features on only")
    parser.add_argument("--rounds", type=int, default=0, help="rounds, each measures everything once")
    parser.add_argument(
        "--workloads",
        type=lambda text: frozenset(text.split(",")),
        default=frozenset(),
        help=f"only these, of {','.join(workload.name for workload in WORKLOADS)}",
    )
    parser.add_argument(
        "--gate",
        choices=("limits", "targets", "nothing"),
        default="limits",
        help="what makes the exit code 1: a figure beyond its hard limit (default), a missed target, nothing",
    )
    parser.add_argument("--slack", type=float, help="widen the hard limits, 0.25 by a quarter (the default of --quick)")
    parser.add_argument(
        "--instruments", action="store_true", help="only what our metrics and access log cost (no peer is needed)"
    )
    parser.add_argument("--pairs", type=int, default=_PAIRS, help=f"of slices of time, for --instruments ({_PAIRS})")
    parser.add_argument("--compare", type=Path, action="append", default=[], help="another checkout of ours")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench.json", help="where the figures go")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/bench-tools", help="where the load tools are built")
    parser.add_argument("--nginx", help="nginx's program, if not on PATH")
    parser.add_argument("--envoy", help="Envoy's program, if not the one in .venv-bench")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
