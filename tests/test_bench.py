"""The judging half of the bench: medians, ratios of one round, verdicts, tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.__main__ import exit_code
from tests.bench.measure import load_metrics
from tests.bench.peers import NGINX, MissingPeerError, find_envoy, find_nginx, variants
from tests.bench.report import number, table, target_section, workload_section
from tests.bench.results import IMPORTS, START, Metric, Results
from tests.bench.targets import SUBJECT, TARGETS, Judgement, Target, Verdict, judge
from tests.bench.tools import Load
from tests.bench.workloads import WORKLOADS, Workload

PEER = f"{NGINX}, features on"


def rounds(*figures: tuple[float, float]) -> Results:
    """Results of one load: for each round our figure and the peer's."""
    results = Results()
    for ours, peer in figures:
        results.add_round()
        results.add(SUBJECT, "load", {Metric.CPU_US: ours})
        results.add(PEER, "load", {Metric.CPU_US: peer})
    return results


def target(*, factor: float = 2.0, plus: float = 0.0, floor: float = 0.0, hard: float | None = None) -> Target:
    return Target(
        title="CPU",
        workload="load",
        metric=Metric.CPU_US,
        peer=PEER,
        factor=factor,
        plus=plus,
        floor=floor,
        hard_factor=hard,
    )


def test_a_figure_is_the_median_of_its_rounds() -> None:
    assert rounds((10, 1), (90, 1), (20, 1)).median(SUBJECT, "load", Metric.CPU_US) == 20


def test_several_figures_of_one_round_count_as_their_median() -> None:
    results = Results()
    results.add_round()
    for start_ms in (300, 900, 310):
        results.add(SUBJECT, START, {Metric.START_MS: start_ms})
    assert results.by_round(SUBJECT, START, Metric.START_MS) == [310]


def test_a_ratio_compares_figures_of_the_same_round() -> None:
    # A noisy second round makes both slow; the ratio of the medians would be 30 / 20.
    assert rounds((30, 15), (200, 100), (20, 20)).ratio(SUBJECT, PEER, "load", Metric.CPU_US) == 2.0


def test_a_round_without_the_peer_is_left_out_of_the_ratio() -> None:
    results = rounds((30, 10))
    results.add_round()
    results.add(SUBJECT, "load", {Metric.CPU_US: 80})
    assert results.ratio(SUBJECT, PEER, "load", Metric.CPU_US) == 3.0


@pytest.mark.parametrize(
    ("ours", "verdict"), [(20.0, Verdict.MET), (20.1, Verdict.MISSED), (25.0, Verdict.MISSED), (25.1, Verdict.FAILED)]
)
def test_between_target_and_hard_limit_a_figure_is_missed(ours: float, verdict: Verdict) -> None:
    assert judge(target(factor=2.0, hard=2.5), rounds((ours, 10))).verdict is verdict


def test_slack_widens_the_hard_limit_only() -> None:
    judged = judge(target(factor=2.0, hard=2.5), rounds((30, 10)), slack=0.25)
    assert (judged.verdict, judged.ratio) == (Verdict.MISSED, 3.0)


def test_a_limit_may_be_a_sum() -> None:
    judged = judge(target(factor=1.0, plus=100), rounds((405, 310)))
    assert (judged.verdict, judged.limit) == (Verdict.MET, 410)


def test_a_limit_never_falls_below_its_floor() -> None:
    judged = judge(target(factor=2.0, floor=10_000), rounds((9_000, 1_000)))
    assert (judged.verdict, judged.limit, judged.ratio) == (Verdict.MET, 10_000, 9.0)


def test_what_was_not_measured_is_not_met() -> None:
    assert judge(target(), Results()) == Judgement(target(), Verdict.UNKNOWN)


def test_every_target_names_a_load_that_exists() -> None:
    assert {target.workload for target in TARGETS} <= {workload.name for workload in WORKLOADS} | {START}


def test_a_target_says_its_rule() -> None:
    assert [target.rule for target in TARGETS if target.floor or target.plus] == [
        "2 × nginx or 10000",
        f"{IMPORTS} + 8",
        "60",
        f"{IMPORTS} + 100",
    ]


@pytest.mark.parametrize(
    ("verdict", "gate", "code"),
    [
        (Verdict.MET, "targets", 0),
        (Verdict.MISSED, "limits", 0),
        (Verdict.MISSED, "targets", 1),
        (Verdict.FAILED, "limits", 1),
        (Verdict.FAILED, "nothing", 0),
        (Verdict.UNKNOWN, "limits", 0),
    ],
)
def test_the_exit_code_says_what_the_gate_asks(verdict: Verdict, gate: str, code: int) -> None:
    assert exit_code(rounds((1, 1)), [Judgement(target(), verdict)], gate=gate) == code


def test_one_altered_answer_of_ours_fails_the_run_one_of_a_peer_does_not() -> None:
    results = rounds((1, 1))
    results.add(PEER, "load", {Metric.FAILED: 1})
    assert exit_code(results, [], gate="limits") == 0
    results.add(SUBJECT, "load", {Metric.FAILED: 1})
    assert exit_code(results, [], gate="limits") == 1


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.5, "0.50"), (9.876, "9.88"), (45.67, "45.7"), (1234.5, "1,234")]
)
def test_numbers_have_about_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_table_is_markdown_and_aligned() -> None:
    assert table(["", "µs"], [["nginx", "9.5"], ["ours", "12"]]).splitlines() == [
        "|       |  µs |",
        "|-------|----:|",
        "| nginx | 9.5 |",
        "| ours  |  12 |",
    ]


def test_a_load_is_shown_with_its_ratios() -> None:
    workload = Workload(name="load", title="a load", connections=1, seconds=1)
    shown = workload_section(rounds((30, 10), (50, 10)), workload, [SUBJECT, PEER, "not measured"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()[2:]]
    assert [cells[:4] for cells in lines if "--" not in cells[0]] == [
        ["", "CPU µs/answer", "× nginx", "min–max"],
        [SUBJECT, "40.0", "4.00", "30.0–50.0"],
        [PEER, "10.0", "1.00", "10.0–10.0"],
    ]


def test_the_targets_end_with_the_count_of_bad_answers() -> None:
    results = rounds((20, 10))
    results.add(SUBJECT, "load", {Metric.FAILED: 3})
    last = target_section([judge(target(), results)], results).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == [
        "failed or altered answers",
        "3",
        "0",
        "0",
        "–",
        "0",
        "beyond the limit",
    ]


def test_a_peer_that_is_not_there_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingPeerError, match="apt install nginx-light"):
        find_nginx(str(tmp_path / "nginx"))
    with pytest.raises(MissingPeerError, match="--envoy PATH"):
        find_envoy(str(tmp_path / "envoy"))


def test_every_proxy_but_the_naive_one_is_measured_with_features_and_without() -> None:
    names = [variant.name for variant in variants(nginx="nginx", envoy="envoy", compare=())]
    assert names == [
        "wings-proxy, features on",
        "nginx, features on",
        "Envoy, features on",
        "wings-proxy",
        "nginx",
        "Envoy",
        "naive aiohttp",
    ]


LOAD = Load(
    seconds=2.0,
    answers=10,
    events=1000,
    failed=0,
    cut=3,
    reconnects=0,
    cpu_seconds=0.05,
    tool_cpu_seconds=1.0,
    resident_bytes=32 * 1024 * 1024,
    latency=None,
    first_byte=None,
    lag={"p50": 100.0, "p99": 900.0, "max": 1200.0},
    slices=[],
    first_failure="",
)


@pytest.mark.parametrize(("events", "cpu_us", "per_second"), [(100, 50.0, 500.0), (0, 5000.0, 5.0)])
def test_cpu_time_is_shared_among_the_events_or_else_the_answers(events: int, cpu_us: float, per_second: float) -> None:
    metrics = load_metrics(Workload(name="load", title="", connections=1, seconds=2, events=events), LOAD)
    assert metrics[Metric.CPU_US] == pytest.approx(cpu_us)
    assert metrics[Metric.PER_SECOND] == per_second
    assert (metrics[Metric.TOOLS_SHARE], metrics[Metric.RESIDENT_MIB], metrics[Metric.LAG_P99_US]) == (0.5, 32, 900)
    assert Metric.LATENCY_P50_US not in metrics


def test_a_load_in_which_nothing_came_has_no_cpu_time_per_unit() -> None:
    nothing: Load = {**LOAD, "events": 0, "answers": 0}
    assert Metric.CPU_US not in load_metrics(Workload(name="load", title="", connections=1, seconds=2), nothing)
