"""What a log says of the engine's speed, and what a prompt in it can not."""

from __future__ import annotations

from pathlib import Path

import pytest

from wings_proxy.engines.log_stats import LLAMACPP_LOG, SGLANG_LOG, VLLM_LOG, LogStats, Silent
from wings_proxy.engines.metrics import EngineSample
from wings_proxy.lifecycle.engine_log import LineSplitter

DATA = Path(__file__).parent.parent / "data"
VLLM = "(APIServer pid=7) INFO 11-22 18:48:55 [loggers.py:335] "
SGLANG = "[2026-11-22 19:20:24] "
SLOT = "1.34.710.775 I slot "
READERS = {"vllm": VLLM_LOG, "sglang": SGLANG_LOG, "llamacpp": LLAMACPP_LOG}


def said(engine: str, *lines: str, now: float = 100.0) -> EngineSample | None:
    stats = LogStats(READERS[engine])
    for line in lines:
        stats.see(line, 100.0)
    return stats.sample(now)


# -- as captured -------------------------------------------------------------------------------------------------------


def replayed(engine: str, name: str) -> EngineSample | None:
    return said(engine, *LineSplitter().feed((DATA / name).read_bytes()))


def test_vllm_as_captured() -> None:
    assert replayed("vllm", "vllm-0.32.0/start_serve_stop.log") == EngineSample(
        running=1.0,
        waiting=0.0,
        kv_cache_usage=0.0,
        prefix_cache_hit_ratio=0.0,
        prompt_tokens_per_second=4.6,
        generation_tokens_per_second=23.4,
    )


def test_sglang_as_captured() -> None:
    sample = replayed("sglang", "sglang-0.5.23/start_serve_drain.log")
    assert sample is not None
    assert (sample.running, sample.waiting, sample.kv_cache_usage) == (1.0, 0.0, 0.01)


def test_llamacpp_as_captured() -> None:
    sample = replayed("llamacpp", "llamacpp-b11549/start_serve.log")
    assert sample is not None
    assert sample.generation_tokens_per_second is not None
    assert sample.generation_tokens_per_second > 0


# -- line by line ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        pytest.param(
            VLLM + "Engine 000: Avg prompt throughput: 23.1 tokens/s, Avg generation throughput: 49.2 tokens/s, "
            "Running: 32 reqs, Waiting: 5 reqs, CPU KV cache usage: 12.5%, Prefix cache hit rate: 50.0%",
            EngineSample(32.0, 5.0, 0.125, 0.5, prompt_tokens_per_second=23.1, generation_tokens_per_second=49.2),
            id="0.32",
        ),
        pytest.param(
            VLLM + "Engine 000: Avg prompt throughput: 1.0 tokens/s, Avg generation throughput: 2.0 tokens/s, "
            "Running: 1 reqs, Waiting: 0 reqs, Deferred: 3 reqs, KV fetch: 1 waiting to start, 2 in progress, "
            "3 completed waiting, Preemptions: 4, GPU KV cache usage: 25.0%, MM cache hit rate: 90.0%, "
            "External prefix cache hit rate: 80.0%",
            EngineSample(1.0, 0.0, 0.25, prompt_tokens_per_second=1.0, generation_tokens_per_second=2.0),
            id="0.32 with everything",
        ),
        pytest.param(
            "INFO 04-22 10:00:00 [metrics.py:489] Avg prompt throughput: 9.0 tokens/s, Avg generation throughput: "
            "8.0 tokens/s, Running: 2 reqs, Swapped: 0 reqs, Pending: 7 reqs, GPU KV cache usage: 50.0%, "
            "CPU KV cache usage: 75.0%.",
            EngineSample(2.0, 7.0, 0.5, prompt_tokens_per_second=9.0, generation_tokens_per_second=8.0),
            id="V0",
        ),
        pytest.param(
            VLLM + "2 Engines Aggregated: Avg prompt throughput: 1.0 tokens/s, Running: 4 reqs",
            EngineSample(4.0, prompt_tokens_per_second=1.0),
            id="aggregated",
        ),
    ],
)
def test_lines_of_vllm(line: str, sample: EngineSample) -> None:
    assert said("vllm", line) == sample


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        (
            SGLANG + "Decode batch, #running-req: 3, #token: 365, token usage: 0.25, cuda graph: True, "
            "gen throughput (token/s): 14.83, #queue-req: 2",
            EngineSample(3.0, 2.0, 0.25, generation_tokens_per_second=14.83),
        ),
        (
            SGLANG + "Prefill batch, #new-seq: 1, #new-token: 21, #cached-token: 0, token usage: 0.00, "
            "#running-req: 0, #queue-req: 1, #pending-token: 0, cpu graph: False, input throughput (token/s): 5.73",
            EngineSample(0.0, 1.0, 0.0, prompt_tokens_per_second=5.73),
        ),
        (
            "[2026-11-22 19:20:24 DP1 TP0] Decode batch [4], #running-req: 3, full token usage: 0.50, accept len: 2",
            EngineSample(3.0, kv_cache_usage=0.5),
        ),
    ],
)
def test_lines_of_sglang(line: str, sample: EngineSample) -> None:
    assert said("sglang", line) == sample


def test_ranks_are_one_engine() -> None:
    part = "Avg prompt throughput: 1.0 tokens/s, Running: 4 reqs, GPU KV cache usage: "
    sample = said("vllm", f"{VLLM}Engine 000: {part}50.0%", f"{VLLM}Engine 001: {part}100.0%")
    assert sample == EngineSample(8.0, kv_cache_usage=0.75, prompt_tokens_per_second=2.0)
    line = "Decode batch, #running-req: 2, token usage: 0.50"
    sample = said("sglang", f"[2026-11-22 19:20:24 DP0 TP0] {line}", f"[2026-11-22 19:20:24 DP1 TP4] {line}")
    assert sample == EngineSample(4.0, kv_cache_usage=0.5)


def test_a_number_is_shown_for_half_a_minute_each_by_itself() -> None:
    stats = LogStats(SGLANG_LOG)
    stats.see(SGLANG + "Decode batch, #running-req: 2, gen throughput (token/s): 8.00", 100.0)
    # A health probe's own: it says nothing of generation.
    stats.see(SGLANG + "Prefill batch, #running-req: 0", 120.0)
    assert stats.sample(130.0) == EngineSample(0.0, generation_tokens_per_second=8.0)
    assert stats.sample(131.0) == EngineSample(0.0)
    assert stats.sample(151.0) is None


def test_slots_of_llamacpp() -> None:
    stats = LogStats(LLAMACPP_LOG)
    assert stats.sample(100.0) is None
    stats.see(SLOT + "launch_slot_: id  3 | task 2 | processing task, is_child = 0", 100.0)
    stats.see(SLOT + "launch_slot_: id  0 | task 3 | processing task, is_child = 0", 100.0)
    assert stats.sample(100.0) == EngineSample(2.0, prompt_tokens_per_second=0.0, generation_tokens_per_second=0.0)
    timing = SLOT + "print_timing: id  3 | task 2 | "
    stats.see(timing + "prompt eval time =     191.85 ms /    60 tokens (   63.95 ms per token, 15.64 ...", 110.0)
    stats.see(timing + "       eval time =    4642.21 ms /   300 tokens (  119.03 ms per token, 8.40 ...", 110.0)
    stats.see(timing + "      total time =    4834.06 ms /   360 tokens", 110.0)
    stats.see(SLOT + "     release: id  3 | task 2 | stop processing: n_tokens = 43, truncated = 0", 110.0)
    assert stats.sample(120.0) == EngineSample(1.0, prompt_tokens_per_second=2.0, generation_tokens_per_second=10.0)
    # The other goes on; of speed there is nothing more to say.
    assert stats.sample(141.0) == EngineSample(1.0, prompt_tokens_per_second=0.0, generation_tokens_per_second=0.0)
    stats.forget()
    assert stats.sample(141.0) is None


# -- what must not count -----------------------------------------------------------------------------------------------

GOOD = "Avg prompt throughput: 9.0 tokens/s, Running: 9 reqs"


@pytest.mark.parametrize(
    "line",
    [
        GOOD,
        f"Engine 000: {GOOD}",
        f"{VLLM}Received request: prompt: '{VLLM}Engine 000: {GOOD}'",
        f" {VLLM}Engine 000: {GOOD}",
        f"WARNING 11-22 18:48:55 [loggers.py:335] Engine 000: {GOOD}",
        f"{VLLM}Engine 0000000: {GOOD}",
        f"{VLLM}Engine 000: Running: 9 reqs",
        f" {SGLANG}Decode batch, #running-req: 9",
        f"prompt: '{SGLANG}Decode batch, #running-req: 9'",
        f"prompt: '{SLOT}launch_slot_: id  0 | task 3 | processing task, is_child = 0",
        SGLANG + "Decode batch #running-req: 9",
        SGLANG + "Decode batch, #running-req: nine",
        "",
    ],
)
def test_a_line_that_does_not_begin_as_the_engines_do_says_nothing(line: str) -> None:
    assert said("vllm", line) is said("sglang", line) is said("llamacpp", line) is None


@pytest.mark.parametrize(
    "field",
    [
        "Running: nan reqs",
        "Running: inf reqs",
        "Running: -1 reqs",
        "Running: 1e9 reqs",
        "Running: 9999999999999 reqs",
        "Running: ٣ reqs",
        "Running:  9 reqs",
        "Running: 9",
        "Running: reqs",
        "Running: 9 reqs and more",
        "GPU KV cache usage: 100.1%",
        "GPU  KV cache usage: 1.0%",
        " KV cache usage: 1.0%",
        "Prefix cache hit rate: 900.0%",
        "Running",
    ],
)
def test_a_field_that_is_not_its_name_a_short_number_and_its_unit_is_left_out(field: str) -> None:
    line = f"{VLLM}Engine 000: Avg prompt throughput: 1.0 tokens/s, {field}"
    assert said("vllm", line) == EngineSample(prompt_tokens_per_second=1.0)


@pytest.mark.parametrize(
    "field",
    [
        "#running-req: 9 and more",
        "#running-req: 9x",
        "#running-req: x9",
        "#running-req: 9.",
        "#running-req:  9",
        "#running-req: -1",
        "#running-req: 1e9",
        "#running-req: nan",
        "#running-req: 9999999999999",
        "#running-req: ٣",
        "#running-req",
        "a #running-req: 9",
        "token usage: 1.01",
    ],
)
def test_a_field_of_sglang_is_its_name_and_a_short_number_from_end_to_end(field: str) -> None:
    line = f"{SGLANG}Decode batch, {field}, #queue-req: 2"
    assert said("sglang", line) == EngineSample(waiting=2.0)


def test_the_first_of_two_fields_counts() -> None:
    line = f"{VLLM}Engine 000: Avg prompt throughput: 1.0 tokens/s, Running: 3 reqs, Running: 4 reqs"
    assert said("vllm", line) == EngineSample(3.0, prompt_tokens_per_second=1.0)


def test_no_line_makes_it_grow_without_bound() -> None:
    stats = LogStats(VLLM_LOG)
    for rank in range(10_000):
        stats.see(f"{VLLM}Engine {rank:03}: {GOOD}", 100.0)
    sample = stats.sample(100.0)
    assert sample is not None
    assert sample.running == 512 * 9.0
    slots = LogStats(LLAMACPP_LOG)
    for slot in range(10_000):
        slots.see(f"{SLOT}launch_slot_: id  {slot} | task 1 | ", 100.0)
        slots.see(f"{SLOT}print_timing: id  {slot} | task 1 | eval time = 1.0 ms / 30 tokens (", 100.0)
    sample = slots.sample(100.0)
    assert sample is not None
    assert sample.running == 1024.0
    assert sample.generation_tokens_per_second == 4096.0


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize(
    "line",
    [
        "(" * 100_000,
        "(" + "a" * 100_000,
        VLLM * 5000,
        VLLM + "Engine 000: " + "Avg prompt throughput: " * 20_000,
        VLLM + "Engine 000: Avg prompt throughput: " + "1" * 200_000,
        VLLM + "Engine 000: Avg prompt throughput: " + ", " * 100_000,
        VLLM + "Engine 000: Avg prompt throughput: " + "a KV cache usage: 1%, " * 10_000,
        "INFO 11-22 18:48:55 [" + "a." * 100_000,
        SGLANG[:-2] + " TP1" * 50_000,
        SGLANG + "Decode batch, " + "#running-req: 1, " * 20_000,
        SGLANG + "Decode batch, " + ": " * 100_000,
        SLOT + " " * 200_000,
        SLOT + "print_timing: id  1 | task 2 | " + " " * 200_000,
        SLOT + "print_timing: id  1 | task 2 | eval time = " + "1" * 200_000,
    ],
)
def test_no_line_takes_longer_than_its_length(engine: str, line: str) -> None:
    # Quadratic, one would take minutes: the suite's own time-out fails then. (What the log tail gives is cut at 4 KiB.)
    stats = LogStats(READERS[engine])
    for _ in range(5):
        stats.see(line, 100.0)


def test_an_engine_whose_lines_nobody_knows_says_nothing() -> None:
    stats = LogStats(Silent)
    stats.see(f"{VLLM}Avg prompt throughput: 4.6 tokens/s, Running: 1 reqs", 100.0)
    assert stats.sample(100.0) is None
