"""What the instruments cost: which statements are left out, how pairs are made of slices, and what is said of them."""

from __future__ import annotations

import ast
import inspect
import math
import os
import re
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import instruments
from tests.bench.__main__ import overhead_exit_code
from tests.bench.instruments import Instrument, Switch, UnknownCodeError, stripped
from tests.bench.measure import Proxy, running
from tests.bench.overhead import MEASURED, Overhead, median_interval, overhead_section, pairs, switched
from tests.bench.peers import API_KEY
from tests.bench.targets import Verdict
from tests.bench.tools import Slice, Tools, running_tools
from tests.bench.workloads import Workload
from wings_proxy.proxy.relay import Relay

LOAD = Workload(name="load", title="a load", connections=1, seconds=1)
STREAMS = Workload(name="streams", title="", connections=2, seconds=0.4, warmup_seconds=0.1, events=20)
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="the load tools are compiled: needs cc")


def overhead(*ratios: float, of: tuple[Instrument, ...] = (Instrument.METRICS,), failed: int = 0) -> Overhead:
    return Overhead(LOAD, of, ratios, (20.4, 20.0), failed)


@pytest.fixture
def switch() -> Iterator[Switch]:
    made = Switch([Instrument.METRICS, Instrument.ACCESS_LOG])
    yield made
    made.on()


COUNTING = """
def count(self, size, events):
    self.progress = now
    self.instruments.arrived(self.exchange, self.now, size, events)

def end(owner, data):
    owner.count(events.count_chunks(data), data.count(b'x'))
    if owner.timed:
        owner.lateness.observe(1.0)
    owner.metrics.count(data)
    if owner.access_log is not None:
        owner.access_log(data)
"""


def test_what_only_counts_is_left_out_and_nothing_else() -> None:
    tree, removed = stripped(COUNTING, [Instrument.METRICS])
    assert ast.unparse(tree) == (
        "def count(self, size, events):\n"
        "    self.progress = now\n"
        "    self.exchange.sent_bytes += size\n"
        "    self.exchange.newest_byte = self.now\n"
        "\n"
        "def end(owner, data):\n"
        "    owner.count(0, data.count(b'x'))\n"
        "    if owner.timed:\n"
        "        pass\n"
        "    pass\n"
        "    if owner.access_log is not None:\n"
        "        owner.access_log(data)"
    )
    assert removed == 4


def test_the_access_log_is_left_out_alone() -> None:
    tree, removed = stripped(COUNTING, [Instrument.ACCESS_LOG])
    assert removed == 1
    assert "access_log" not in ast.unparse(tree)
    assert ast.unparse(tree).count("observe") == 1


def test_without_anything_to_leave_out_a_program_is_itself() -> None:
    tree, removed = stripped(COUNTING, [Instrument.NOTHING])
    assert (ast.unparse(tree), removed) == (ast.unparse(ast.parse(COUNTING)), 0)


def test_no_instrument_is_left_in_the_bare_code_of_the_package(switch: Switch) -> None:
    counters = {"observe", "access_log", "metrics", "arrived", "count_chunks"}
    assert [each.function.__qualname__ for each in switch.functions if counters & {*each.bare.co_names}] == []
    # Else they stand where nobody looks for them.
    assert counters <= {name for each in switch.functions for name in each.counting.co_names}


def test_every_observation_of_the_package_stands_where_it_is_looked_for() -> None:
    package = Path(inspect.getfile(Relay)).parents[1]
    observing = {
        ".".join(("wings_proxy", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if re.search(r"\.observe\(|\.arrived\(|\.metrics\.count\(|\.access_log\(", path.read_text())
    }
    # What `count` does of a request is left out with it.
    assert observing - {"wings_proxy.proxy.request_metrics"} == set(instruments.MODULES)


def test_a_switch_puts_back_what_it_took(switch: Switch) -> None:
    before = Relay._count.__code__
    switch.off()
    assert Relay._count.__code__ is not before
    switch.on()
    assert Relay._count.__code__ is before


def test_the_control_exchanges_the_same_functions_for_the_same_code(switch: Switch) -> None:
    control = Switch([Instrument.NOTHING])
    assert [each.function for each in control.functions] == [each.function for each in switch.functions]
    for each in control.functions:
        assert each.bare is not each.counting
        assert each.bare.co_code == each.counting.co_code


def test_a_package_that_counts_in_another_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "MODULES", ("wings_proxy.exit_codes",))
    with pytest.raises(UnknownCodeError, match=r"nothing in wings_proxy\.exit_codes looks like a part of: metrics"):
        Switch([Instrument.METRICS])


def test_the_first_of_a_pair_is_with_then_without() -> None:
    slices: list[Slice] = [(0.3, 100, 0), (0.2, 100, 0), (0.2, 100, 0), (0.6, 200, 0), (9.0, 100, 0)]
    assert pairs(slices, events=False) == [(0.003, 0.002), (0.003, 0.002)]


def test_streams_are_told_by_their_events() -> None:
    assert pairs([(0.3, 1, 100), (0.2, 0, 100)], events=True) == [(0.003, 0.002)]


def test_a_slice_in_which_next_to_nothing_came_spoils_its_pair_only() -> None:
    slices: list[Slice] = [(0.3, 19, 0), (0.2, 100, 0), (0.2, 100, 0), (0.3, 100, 0)]
    assert pairs(slices, events=False) == [(0.003, 0.002)]


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        # All below the median, or all above: 2 / 2^5 = 6.25 %, and 2 / 2^6 = 3.1 %.
        ((1, 2, 3, 4, 5), (-math.inf, math.inf)),
        ((6, 1, 2, 5, 3, 4), (1, 6)),
        # With one on the wrong side: 2 × (1 + 8) / 2^8 = 7 %, and 2 × (1 + 9) / 2^9 = 3.9 %.
        (tuple(range(8)), (0, 7)),
        (tuple(range(9)), (1, 7)),
        ((), (-math.inf, math.inf)),
    ],
)
def test_the_interval_is_of_order_alone(values: tuple[float, ...], interval: tuple[float, float]) -> None:
    assert median_interval(values, 0.95) == interval


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (overhead(*[1.02] * 10, *[1.05] * 10), Verdict.MET),
        (overhead(*[1.02] * 10, *[1.06] * 10), Verdict.UNKNOWN),
        (overhead(*[1.06] * 20), Verdict.MISSED),
        (overhead(*[1.10] * 20), Verdict.MISSED),
        (overhead(*[1.11] * 20), Verdict.FAILED),
        (overhead(1.0, 1.0), Verdict.UNKNOWN),
        (overhead(*[1.3] * 20, of=(Instrument.METRICS, Instrument.ACCESS_LOG)), None),
    ],
)
def test_the_whole_interval_must_say_so(measured: Overhead, verdict: Verdict | None) -> None:
    assert measured.verdict() is verdict


def test_slack_widens_the_hard_limit_of_the_instruments() -> None:
    assert overhead(*[1.14] * 20).verdict(0.5) is Verdict.MISSED
    assert overhead(*[1.16] * 20).verdict(0.5) is Verdict.FAILED


@pytest.mark.parametrize(
    ("measured", "gate", "code"),
    [
        (overhead(*[1.02] * 20), "targets", 0),
        (overhead(*[1.06] * 20), "limits", 0),
        (overhead(*[1.06] * 20), "targets", 1),
        (overhead(*[1.2] * 20), "limits", 1),
        (overhead(*[1.2] * 20), "nothing", 0),
        (overhead(*[1.02] * 20, failed=1), "limits", 1),
    ],
)
def test_the_gate_is_that_of_the_other_targets(measured: Overhead, gate: str, code: int) -> None:
    assert overhead_exit_code([measured], slack=0.0, gate=gate) == code


def test_the_table_of_the_instruments() -> None:
    shown = overhead_section([overhead(*[1.02] * 30), overhead(1.0, of=(Instrument.NOTHING,))]).splitlines()
    assert [cell.strip() for cell in shown[4].strip("|").split("|")] == [
        "metrics",
        "load",
        "20.4",
        "20.0",
        "1.020",
        "1.020–1.020",
        "30",
        "met",
    ]
    assert [cell.strip() for cell in shown[5].strip("|").split("|")][-4:] == ["1.000", "-inf–inf", "1", "–"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_cc
def test_slices_part_the_window_and_are_told_by_signals(tmp_path: Path) -> None:
    told: list[int] = []
    before = {number: signal.signal(number, lambda n, _: told.append(n)) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with running_tools(tmp_path, frozenset(os.sched_getaffinity(0))) as tools:
            load = tools.load(STREAMS, tools.engine_port, [os.getpid()], slices=6)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Python sees a signal once, however often it came while it did not look.
    assert set(told) == {signal.SIGUSR1, signal.SIGUSR2}
    assert told[-1] == signal.SIGUSR1
    assert len(load["slices"]) == 6
    assert sum(each[2] for each in load["slices"]) == load["events"] > 0
    assert sum(each[1] for each in load["slices"]) == load["answers"]
    assert sum(each[0] for each in load["slices"]) == pytest.approx(load["cpu_seconds"], abs=1e-3)


def gaps(proxy: Proxy) -> float:
    """Return how many gaps between events the sidecar has counted, all routes together."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{proxy.port}/metrics", headers={"Authorization": f"Bearer {API_KEY}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        page = answer.read().decode()
    return sum(float(value) for value in re.findall(r"^wings_inter_chunk_seconds_count{.*} (\S+)$", page, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(400)
@needs_cc
@pytest.mark.parametrize("without", MEASURED, ids=", ".join)
def test_switched_off_a_sidecar_counts_nothing_and_loses_nothing(
    tmp_path: Path, without: tuple[Instrument, ...]
) -> None:
    cores = frozenset(os.sched_getaffinity(0))

    def load(tools: Tools, proxy: Proxy) -> int:
        done = tools.load(STREAMS, proxy.port, proxy.pids)
        assert (done["failed"], done["events"] > 0) == (0, True), done["first_failure"]
        return done["events"]

    with running_tools(tmp_path, cores) as tools, running(switched(without), tools.engine_port, cores) as proxy:
        os.kill(proxy.pids[0], signal.SIGUSR2)
        load(tools, proxy)
        assert (gaps(proxy) > 0) == (Instrument.METRICS not in without)
        os.kill(proxy.pids[0], signal.SIGUSR1)
        load(tools, proxy)
        assert gaps(proxy) > 0
