"""`/metrics` of a whole sidecar: every engine under the same names, and whatever an engine does, ours are served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families as read_classic

from tests.fake_engine import Flavour, Metrics, StartEngine
from tests.llama_pod import llama_pod, real_model
from tests.ports import free_port
from tests.sidecar import RUN, chat, sidecar
from tests.stream_client import CHAT
from tests.telemetry.pages import stand, whole
from wings_proxy.engines.log_stats import LLAMACPP_LOG, LogStats
from wings_proxy.lifecycle.engine_log import LineSplitter

DATA = Path(__file__).parent / "data"
STATS = (
    "(APIServer pid=7) INFO 11-22 18:48:55 [loggers.py:335] Engine 000: Avg prompt throughput: 1.0 tokens/s, "
    "Avg generation throughput: 77.0 tokens/s, Running: 55 reqs, Waiting: 0 reqs\n"
)


def numbers(page: str, source: str = "metrics") -> dict[str, float]:
    """The engine's figures, by their name without the prefix."""
    return {
        sample.name.removeprefix("wings_engine_"): sample.value
        for family in read_classic(page)
        for sample in family.samples
        if sample.labels.get("source") == source
    }


def value(page: str, name: str) -> float | None:
    samples = [sample for family in read_classic(page) for sample in family.samples if sample.name == name]
    return samples[0].value if samples else None


@pytest.mark.parametrize("flavour", Flavour)
async def test_one_set_of_names_for_every_engine(fake_engine: StartEngine, tmp_path: Path, flavour: Flavour) -> None:
    engine = await fake_engine(flavour=flavour, tokens=20)
    async with sidecar(tmp_path, engine.port, ENGINE_TYPE=flavour) as running:
        # Nobody is asked for numbers before there is an engine.
        assert value((await running.get("/metrics"))[1], "wings_engine_scrape_success") in (None, 1.0)
        await running.health(lambda body: body["state"] == "ready")
        await chat(running)
        status, page = await running.get("/metrics")
        assert status == 200
        shown = numbers(page)
        assert shown["generation_tokens_total"] == 20.0
        assert shown["prompt_tokens_total"] > 0
        assert (shown["requests_running"], shown["requests_waiting"]) == (0.0, 0.0)
        assert value(page, "wings_engine_scrape_success") == 1.0
        assert f"\n{flavour}:" in page
        # A crash: nothing of it stays on the page.
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        await engine.close()
        running.status("exited", code=137)
        await running.health(lambda body: body["state"] == "failed")
        page = (await running.get("/metrics"))[1]
        assert numbers(page) == {}
        assert value(page, "wings_engine_scrape_success") is None
        assert f"\n{flavour}:" not in page
        assert 'wings_engine_failures_total{reason="killed"} 1.0' in page


@pytest.mark.parametrize(
    ("metrics", "success"),
    [
        (Metrics.OFF, None),
        (Metrics.BINARY, None),
        (Metrics.WEIRD, 1.0),
        (Metrics.LONG_LINE, 0.0),
        (Metrics.ERROR, 0.0),
        (Metrics.REDIRECT, 0.0),
        (Metrics.HUGE, 0.0),
        (Metrics.ENDLESS, 0.0),
        (Metrics.HANG, 0.0),
    ],
)
async def test_whatever_the_engines_page_is_ours_is_served_in_time(
    fake_engine: StartEngine, tmp_path: Path, metrics: Metrics, success: float | None
) -> None:
    engine = await fake_engine(metrics=metrics, huge_bytes=2 << 20)
    settings = {"WINGS_SCRAPE_MAX_BYTES": str(1 << 20)} if metrics is Metrics.HUGE else {}
    ends = metrics not in (Metrics.HANG, Metrics.ENDLESS)
    settings["WINGS_SCRAPE_TIMEOUT_SECONDS"] = "30" if ends else "0.2"
    async with sidecar(tmp_path, engine.port, **settings) as running:
        await running.health(lambda body: body["state"] == "ready")
        status, page = await running.get("/metrics")
        assert status == 200
        assert value(page, "wings_engine_scrape_success") == success
        assert page.count("# TYPE wings_engine_state gauge") == 1
        assert 'wings_engine_state{state="ready"} 1.0' in page
        assert all(shown >= 0 for shown in numbers(page).values())
        assert numbers(page, "log") == {}


async def test_a_stats_line_in_a_prompt_moves_nothing_unless_there_is_nothing_else(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    (tmp_path / "engine.log").write_text(STATS)
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await running.health(lambda body: body["state"] == "ready")
        async with asyncio.timeout(60):
            page = ""
            while value(page, "wings_engine_log_lines_total") != 1.0:
                page = (await running.get("/metrics"))[1]
        assert numbers(page)["requests_running"] == 0.0
        assert numbers(page, "log") == {}
        # Not even while the page cannot be read.
        engine.settings.metrics = Metrics.ERROR
        assert numbers((await running.get("/metrics"))[1], "log") == {}
        engine.settings.metrics = Metrics.OFF
        page = (await running.get("/metrics"))[1]
        assert numbers(page) == {}
        assert numbers(page, "log") == {
            "requests_running": 55.0,
            "requests_waiting": 0.0,
            "prompt_tokens_per_second": 1.0,
            "generation_tokens_per_second": 77.0,
        }


def full_pipe() -> tuple[int, int]:
    """A pipe that takes not one byte more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 65_536)
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_standard_output_nobody_reads_stops_no_stream(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=50, token_seconds=0.001)
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "MODEL_PATH": "/models/tiny-qwen2",
        "ENGINE_PORT": str(engine.port),
        "WINGS_PORT": str(port),
        "WINGS_HOST": "127.0.0.1",
        "WINGS_QUIET_SECONDS": "0",
        "SHARED_VOLUME_PATH": str(tmp_path),
    }
    reading, writing = full_pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wings_proxy", "serve"), env=environ, stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    base = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(100):
            answers = 0
            while answers < 20:
                try:
                    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
                    async with client.post(base + CHAT, json=body) as answer:
                        answers += (await answer.read()).endswith(b"data: [DONE]\n\n")
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
            async with client.get(base + "/metrics") as answer:
                assert value(await answer.text(), "wings_log_dropped_lines_total") == 0.0
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
        os.close(reading)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.engine
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.timeout(300)
async def test_three_engines_side_by_side() -> None:
    """llama.cpp as it runs; vLLM and SGLang as they were captured."""
    table: dict[str, Mapping[str, float]] = {}
    page, usage = "", dict[str, int]()
    async with llama_pod(await real_model()) as pod:
        await pod.start()
        await pod.until_state("ready")
        base = f"http://127.0.0.1:{pod.port}"
        async with aiohttp.ClientSession() as client:
            for _ in range(2):
                body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 24}
                async with client.post(base + CHAT, json=body) as answer:
                    usage = (await answer.json())["usage"]
                async with client.get(base + "/metrics") as answer:
                    page = await answer.text()
                await asyncio.sleep(1.1)
        table["llamacpp"] = shown = numbers(page)
        assert shown["generation_tokens_total"] >= usage["completion_tokens"]
        assert shown["prompt_tokens_total"] == 2 * usage["prompt_tokens"]
        assert shown["generation_tokens_per_second"] > 0
        assert value(page, "llamacpp:tokens_predicted_total") == shown["generation_tokens_total"]
        # The log of the same run says the same, for who has no metrics.
        stats = LogStats(LLAMACPP_LOG)
        for line in LineSplitter().feed((pod.volume / "engine.log").read_bytes()):
            stats.see(line, 100.0)
        said = stats.sample(100.0)
        assert said is not None
        assert said.running == 0.0
        assert said.generation_tokens_per_second == pytest.approx(shown["generation_tokens_total"] / 30, rel=0.2)
    for engine, directory in (("vllm", "vllm-0.32.0"), ("sglang", "sglang-0.5.23")):
        captured = (DATA / directory / "get_metrics_after.http").read_bytes().replace(b"\r\n", b"\n")
        async with stand(whole(captured.partition(b"\n\n")[2]), engine=engine) as made:
            figures = await made.page.figures()
            assert figures is not None
            sample = await made.scrape.sample()
            assert sample is not None
            assert sample.prompt_tokens is not None
            assert sample.generation_tokens is not None
            table[engine] = {
                "requests_running": figures["running"] or 0.0,
                "requests_waiting": figures["waiting"] or 0.0,
                "prefix_cache_hit_ratio": figures["prefix_cache_hit_ratio"] or 0.0,
                "prompt_tokens_total": sample.prompt_tokens,
                "generation_tokens_total": sample.generation_tokens,
            }
            assert set(table[engine]) <= set(table["llamacpp"])
    for name in table["llamacpp"]:
        print(f"{name:32}", *(f"{engine} {shown.get(name)!s:24}" for engine, shown in table.items()))
