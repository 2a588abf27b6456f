"""From the bytes of an engine's log to the load phases it shows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.engine_log import LineSplitter, LoadProgress
from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle import Progress


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


@pytest.mark.parametrize(
    ("engine", "log", "phases"),
    [
        (
            "vllm",
            "vllm-0.32.0/start_serve_stop.log",
            ["engine_init", "weights", "compile", "warm_up", "server"],
        ),
        (
            "sglang",
            "sglang-0.5.23/start_serve_drain.log",
            ["engine_init", "weights", "kv_cache", "server", "warm_up"],
        ),
        ("llamacpp", "llamacpp-b11549/start_serve.log", ["weights", "warm_up", "server"]),
    ],
)
def test_the_captured_log_of_a_start_shows_every_phase_in_order(engine: str, log: str, phases: list[str]) -> None:
    data = (Path(__file__).parent / "data" / log).read_bytes()
    progress = LoadProgress(ENGINES[engine].load_phases)
    shown = [step for line in LineSplitter().feed(data) if (step := progress.see(line)) is not None]
    assert [name for name, _ in itertools.groupby(step.phase for step in shown)] == phases
    ratios = [step.ratio for step in shown if step.ratio is not None]
    assert ratios == sorted(ratios)
    assert ratios[-1:] in ([1.0], [])


def test_a_phase_that_is_over_does_not_come_back() -> None:
    progress = LoadProgress(ENGINES["vllm"].load_phases)
    assert progress.see(VLLM[4][0]) == Progress("compile")
    assert progress.see(VLLM[1][0]) is None


def test_a_forged_line_must_begin_like_one_of_the_engines() -> None:
    progress = LoadProgress(ENGINES["vllm"].load_phases)
    assert progress.see("prompt: 'Loading safetensors checkpoint shards: 100% Completed | 4/4 ['") is None
    assert progress.see("Loading safetensors checkpoint shards:   0% Completed | 0/0 [") == Progress("weights")
