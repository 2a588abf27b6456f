"""From the bytes of an engine's log to the load phases it shows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle.engine_log import LineSplitter, LoadProgress, LogCounts, is_echo
from wings_proxy.lifecycle.state import Progress


def test_lines_end_with_lf_or_cr_and_may_come_in_pieces() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"one\ntw")) == ["one"]
    assert list(splitter.feed(b"o\r 50%\r100%\r\nthree")) == ["two", " 50%", "100%"]
    assert list(splitter.feed(b"\n\n\n")) == ["three"]


def test_colours_are_taken_off_and_bytes_that_are_no_text_are_marked() -> None:
    assert list(LineSplitter().feed(b"\x1b[0;36m(APIServer pid=1)\x1b[0m ready \xff\n")) == [
        "(APIServer pid=1) ready \ufffd"
    ]


def test_a_line_that_never_ends_costs_no_memory_and_hides_nothing_after_it() -> None:
    splitter = LineSplitter()
    lines = [line for _ in range(100) for line in splitter.feed(b"x" * 10_000)]
    assert lines == ["x" * 4096]
    assert list(splitter.feed(b"still the same line\nnext\n")) == ["next"]


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 2000)))
def test_where_the_bytes_are_cut_makes_no_difference(parts: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(parts) + b"\n"
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    splitter = LineSplitter()
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    assert [line for piece in pieces for line in splitter.feed(piece)] == list(LineSplitter().feed(data))


VLLM = [
    (
        "(EngineCore pid=30741) INFO 11-22 18:47:55 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with",
        Progress("engine_init"),
    ),
    (
        "(Worker pid=31000) INFO 11-22 18:48:13 [cpu_model_runner.py:68] Starting to load model /models/tiny-qwen2...",
        Progress("weights"),
    ),
    ("Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]", Progress("weights", 0.0)),
    (
        "Loading safetensors checkpoint shards:  75% Completed | 3/4 [00:00<00:00, 190.32it/s]",
        Progress("weights", 0.75),
    ),
    (
        "(Worker pid=31000) INFO 11-22 18:48:14 [cpu_model_runner.py:87] Warming up model for the compilation...",
        Progress("compile"),
    ),
    (
        "(EngineCore pid=3) INFO 11-22 18:48:43 [core.py:4] init engine (profile, create kv cache, warmup model) took ",
        Progress("warm_up"),
    ),
    (
        "(APIServer pid=27947) INFO 11-22 18:48:44 [entry.py:140] Starting vLLM server on http://127.0.0.1:28741",
        Progress("server"),
    ),
]
SGLANG = [
    ("[2026-11-22 19:17:35] server_args={'model_path': '/models/tiny-qwen2'", Progress("engine_init")),
    ("[2026-11-22 19:18:54] Load weight begin. avail mem=20.80 GB", Progress("weights")),
    ("Multi-thread loading shards:   0% Completed | 0/1 [00:00<?, ?it/s]", Progress("weights", 0.0)),
    ("[2026-11-22 19:18:59] INFO:     Started server process [24478]", Progress("server")),
    ("[2026-11-22 19:19:00] INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C)", Progress("warm_up")),
]
LLAMACPP = [
    ("0.00.023.465 I srv          init: loading model", Progress("weights")),
    ("0.12.294.656 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 2048", Progress("warm_up")),
    ("0.12.308.863 I srv          init: model loaded", Progress("server")),
]


@pytest.mark.parametrize(("engine", "story"), [("vllm", VLLM), ("sglang", SGLANG), ("llamacpp", LLAMACPP)])
def test_each_engines_own_log_lines_show_its_phases(engine: str, story: list[tuple[str, Progress]]) -> None:
    progress = LoadProgress(ENGINES[engine].load_phases)
    for line, expected in story:
        assert progress.see(line) == expected
    assert progress.see("INFO:     127.0.0.1:40000 - GET /health HTTP/1.1 200 OK") is None


CAPTURES = Path(__file__).parents[1] / "data"
# Compiled only without `--enforce-eager`; a start that fails shows the phases it reached.
EAGER = ["engine_init", "weights", "warm_up", "server"]
SGLANG_START = ["engine_init", "weights", "kv_cache", "server", "warm_up"]
PHASES: dict[str, list[str]] = {
    "llamacpp-b11549/start_model_path.log": ["weights"],
    "llamacpp-b11549/start_not_gguf.log": ["weights"],
    "llamacpp-b11549/start_port_in_use.log": [],
    "llamacpp-b11549/start_serve.log": ["weights", "warm_up", "server"],
    "llamacpp-b11549/start_truncated.log": ["weights"],
    "llamacpp-b11549/start_unknown_flag.log": [],
    "sglang-0.5.23/scheduler_killed.log": SGLANG_START,
    "sglang-0.5.23/start_serve_drain.log": SGLANG_START,
    "vllm-0.32.0/core_killed.log": EAGER,
    "vllm-0.32.0/drain.log": EAGER,
    "vllm-0.32.0/server_killed.log": EAGER,
    "vllm-0.32.0/start_bad_choice.log": [],
    "vllm-0.32.0/start_context_too_long.log": [],
    "vllm-0.32.0/start_kv_cache_too_small.log": ["engine_init", "weights"],
    "vllm-0.32.0/start_memory_taken.log": ["engine_init"],
    "vllm-0.32.0/start_model_path.log": [],
    "vllm-0.32.0/start_no_model_in_directory.log": [],
    "vllm-0.32.0/start_not_downloaded.log": [],
    "vllm-0.32.0/start_port_in_use.log": [],
    "vllm-0.32.0/start_serve_stop.log": ["engine_init", "weights", "compile", "warm_up", "server"],
    "vllm-0.32.0/start_tensor_parallel.log": [],
    "vllm-0.32.0/start_unknown_flag.log": [],
}


@pytest.mark.parametrize("log", PHASES)
def test_the_captured_log_of_a_start_shows_every_phase_in_order(log: str) -> None:
    progress = LoadProgress(ENGINES[log.partition("-")[0]].load_phases)
    data = (CAPTURES / log).read_bytes()
    shown = [step for line in LineSplitter().feed(data) if (step := progress.see(line)) is not None]
    assert [name for name, _ in itertools.groupby(step.phase for step in shown)] == PHASES[log]
    ratios = [step.ratio for step in shown if step.ratio is not None]
    assert ratios == sorted(ratios)
    assert ratios[-1:] in ([1.0], [])


@pytest.mark.parametrize(
    ("line", "echo"),
    [
        ('INFO:     127.0.0.1:35758 - "GET /health HTTP/1.1" 503 Service Unavailable', True),
        ('(APIServer pid=27947) INFO:     127.0.0.1:42776 - "GET /v1/models HTTP/1.1" 200 OK', True),
        ('[2026-11-22 19:22:11] INFO:     127.0.0.1:35654 - "GET /metrics HTTP/1.1" 200 OK', True),
        ('INFO:     127.0.0.1:35654 - "POST /generate HTTP/1.1" 200 OK', False),
        ("[2026-11-22 19:18:54] Load weight begin. avail mem=20.80 GB", False),
        ('prompt: INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 200', False),
    ],
)
def test_what_the_engine_notes_of_our_own_questions(line: str, *, echo: bool) -> None:
    assert is_echo(line) is echo


def test_no_captured_log_is_left_out() -> None:
    assert set(PHASES) == {str(path.relative_to(CAPTURES)) for path in CAPTURES.glob("*/*.log")}


def test_a_phase_that_is_over_does_not_come_back() -> None:
    progress = LoadProgress(ENGINES["vllm"].load_phases)
    assert progress.see(VLLM[4][0]) == Progress("compile")
    assert progress.see(VLLM[1][0]) is None


def test_a_forged_line_must_begin_like_one_of_the_engines() -> None:
    progress = LoadProgress(ENGINES["vllm"].load_phases)
    assert progress.see("prompt: 'Loading safetensors checkpoint shards: 100% Completed | 4/4 ['") is None
    assert progress.see("Loading safetensors checkpoint shards:   0% Completed | 0/0 [") == Progress("weights")


def test_what_was_dropped_is_counted() -> None:
    counts = LogCounts()
    splitter = LineSplitter(counts)
    assert list(splitter.feed(b"short\n" + b"x" * 5000 + b"\n")) == ["short", "x" * 4096]
    assert counts == LogCounts(lines=2, dropped_bytes=904)
    assert list(splitter.feed(b"y" * 4097)) == ["y" * 4096]
    assert list(splitter.feed(b"y" * 10)) == []
    assert list(splitter.feed(b"y" * 10 + b"\nnext\n")) == ["next"]
    assert counts == LogCounts(lines=4, dropped_bytes=904 + 1 + 20)


def test_what_begins_a_file_does_not_end_a_line_of_another() -> None:
    counts = LogCounts()
    splitter = LineSplitter(counts)
    assert list(splitter.feed(b"one\nhalf")) == ["one"]
    splitter.restart()
    assert list(splitter.feed(b"two\n" + b"x" * 5000)) == ["two", "x" * 4096]
    splitter.restart()
    assert list(splitter.feed(b"three\n")) == ["three"]
    assert counts == LogCounts(lines=4, dropped_bytes=4 + 904)


def test_after_a_gap_the_rest_of_a_line_is_no_line() -> None:
    counts = LogCounts()
    splitter = LineSplitter(counts)
    assert list(splitter.feed(b"one\nhalf")) == ["one"]
    splitter.skip()
    assert list(splitter.feed(b"of another\ntwo\n")) == ["two"]
    assert counts == LogCounts(lines=2, dropped_bytes=14)
