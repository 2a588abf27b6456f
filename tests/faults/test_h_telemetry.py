"""H. Metrics and logs."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fake_engine import Metrics, StartEngine
from tests.faults.program import fake_engine_program, program
from tests.faults.scene import KEYS, connect, get, metric, scene, state, stream
from tests.ports import free_port
from tests.sidecar import HANG_SECONDS, RUN, sidecar
from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle.engine_log import LineSplitter, LoadProgress
from wings_proxy.lifecycle.log_tail import tail_engine_log
from wings_proxy.proxy.request_metrics import RequestMetrics
from wings_proxy.telemetry.log import _JsonFormatter, _PlainFormatter


@pytest.mark.parametrize("kind", [kind for kind in Metrics if kind is not Metrics.OK])
async def test_h78_whatever_the_engine_says_our_own_metrics_are_served(
    fake_engine: StartEngine, tmp_path: Path, kind: Metrics
) -> None:
    """A page that was not read to its end is not told as good, and no name of ours is taken from it."""
    switches = {"metrics": kind, "huge_bytes": 50_000_000}
    async with scene(fake_engine, tmp_path, engine=switches) as (running, engine):
        async with asyncio.timeout(40):
            _, page = await running.get("/metrics")
        assert 'wings_engine_state{state="ready"} 1.0\n' in page
        assert len(page) < 17 * 2**20  # WINGS_SCRAPE_MAX_BYTES, and our own
        assert "\nwings_engine_state 7" not in page  # a name of ours, said by the engine
        if kind in {Metrics.ERROR, Metrics.HANG, Metrics.REDIRECT, Metrics.HUGE, Metrics.ENDLESS, Metrics.BOMB}:
            assert "wings_engine_scrape_success 0.0\n" in page
        # Nothing packed is asked for, so nothing has to be unpacked.
        assert {request.header("accept-encoding") for request in engine.requests} == {"identity"}


HEAD = "(APIServer pid=1) INFO 11-22 18:48:13 [loggers.py:257] "
STATS = (
    "Engine 000: Avg prompt throughput: 5.0 tokens/s, Avg generation throughput: 71.0 tokens/s, "
    "Running: 72 reqs, Waiting: 73 reqs, GPU KV cache usage: 74.0%"
)
IN_A_PROMPT = (
    f"{HEAD}Received request: prompt: 'x\n {HEAD}{STATS}'\nprompt {HEAD}{STATS}\n",
    f"{HEAD}Received request: prompt: {STATS}\n",
    # vLLM puts its head before each line of what it logs, so also behind a line end of the prompt's own.
    f"{HEAD}Received request: prompt: 'x\n{HEAD}{HEAD}{STATS}'\n",
    f"{HEAD}{STATS}\n".replace(" 5.0 ", " inf "),
    *(f"{HEAD}{STATS}\n".replace(" 72 ", f" {number} ") for number in ("1e999", "nan", "-72", "7" * 400)),
)


@asynccontextmanager
async def logged(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Give a sidecar whose engine is ready, and what writes to its log and returns the page once that was read."""
    monkeypatch.setitem(cast("dict[str, Any]", tail_engine_log.__kwdefaults__), "intervals", (0.01, 0.01))
    patient: dict[str, Any] = {"WINGS_SCRAPE_TIMEOUT_SECONDS": "30"}
    async with scene(fake_engine, tmp_path, engine={"metrics": metrics}, **patient) as (running, _):
        # From here on no run begins, so nothing of the log is forgotten.
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        (tmp_path / "engine.log").write_text("")

        async def write(text: str) -> str:
            lines = await metric(running, "wings_engine_log_lines_total") + text.count("\n")
            with (tmp_path / "engine.log").open("a") as log:
                log.write(text)
            async with asyncio.timeout(HANG_SECONDS):
                while await metric(running, "wings_engine_log_lines_total") < lines:  # noqa: ASYNC110 - a page rings no bell
                    await asyncio.sleep(0.01)
            return str((await running.get("/metrics"))[1])

        yield write


async def test_h79_where_the_engine_has_metrics_no_line_moves_anything(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with logged(fake_engine, tmp_path, monkeypatch, Metrics.OK) as write:
        page = await write(f"{HEAD}{STATS}\n" + "".join(IN_A_PROMPT))
        assert re.search(r'^wings_engine_requests_running\{[^}]*source="metrics"\} 0\.0$', page, re.MULTILINE)
        assert 'source="log"' not in page


async def test_h79_where_it_has_none_a_line_in_a_prompt_moves_no_gauge(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a line whose one number is none the others stand: its beginning and its end are the engine's."""
    async with logged(fake_engine, tmp_path, monkeypatch, Metrics.OFF) as write:
        page = await write("".join(IN_A_PROMPT[:3]))
        assert 'source="log"' not in page
        page = await write("".join(IN_A_PROMPT[4:]))
        assert "wings_engine_requests_running{" not in page
        assert "wings_engine_requests_waiting{" in page


async def test_h79_and_one_that_cannot_be_told_from_the_engines_moves_its_own_gauges_alone(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with logged(fake_engine, tmp_path, monkeypatch, Metrics.OFF) as write:
        before = {line.rpartition(" ")[0] for line in (await write("nothing\n")).splitlines()}
        page = await write(f"{HEAD}{STATS}\n")
        moved = [
            line for line in page.splitlines() if line[:1] not in {"", "#"} and line.rpartition(" ")[0] not in before
        ]
        assert {re.sub(r"\{.*source=.log.*\}", "", line) for line in moved if 'source="' in line} == {
            "wings_engine_requests_running 72.0",
            "wings_engine_requests_waiting 73.0",
            "wings_engine_kv_cache_usage_ratio 0.74",
            "wings_engine_prompt_tokens_per_second 5.0",
            "wings_engine_generation_tokens_per_second 71.0",
        }
        assert not [line for line in moved if line.startswith("wings_engine_") and 'source="' not in line]


LONG_LINES = ["x" * 200_000, "(a pid=1) " * 20_000, "Loading " * 20_000, "1/" * 100_000, " " * 200_000] + [
    HEAD + filling * (200_000 // len(filling)) for filling in ("Avg ", "Engine 000: ", "tokens/s, ", "0.", "Error: ")
]


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("line", LONG_LINES, ids=[line[-12:] for line in LONG_LINES])
def test_h80_no_line_takes_long_to_read(name: str, line: str) -> None:
    """200 kB on the whole of their way: cut, and held against every expression there is. 10 ms, by our own clock."""
    engine = ENGINES[name]

    def read() -> float:
        progress, numbers = LoadProgress(engine.load_phases), engine.log_reader()
        began = time.thread_time()
        lines = list(LineSplitter().feed(line.encode() + b"\n"))
        for piece in lines:
            progress.see(piece)
            numbers.see(piece, 0.0)
        numbers.sample(0.0)
        took = time.thread_time() - began
        assert [len(piece) for piece in lines] == [4096]
        return took

    # The best of some: the first one compiles, and a core that is shared is slower.
    assert min(read() for _ in range(5)) < 0.01


@pytest.mark.parametrize("name", sorted(ENGINES))
@pytest.mark.parametrize("line", LONG_LINES, ids=[line[-12:] for line in LONG_LINES])
def test_h80_nor_to_be_looked_through_for_a_reason(name: str, line: str) -> None:
    """The end of a failed run's log may be one such line, and 64 KiB of it are looked at, in a thread of its own."""

    known = ENGINES[name].failure_lines
    patterns = [re.compile(text) for entry in known for text in (entry.line, entry.of_ready) if text is not None]

    def read() -> float:
        began = time.thread_time()
        for pattern in patterns:
            pattern.match(line[:65536])
        return time.thread_time() - began

    assert min(read() for _ in range(3)) < 0.5


async def test_h81_strangers_make_no_labels(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_ALLOW_ALL_PATHS="true") as (running, _):
        await get(running, b"/v1/models")
        await get(running, b"/warm-up")
        before = len((await running.get("/metrics"))[1].splitlines())
        for number in range(30):
            await get(running, b"/canary-%d" % number, b"User-Agent: canary-%d" % number)
        _, page = await running.get("/metrics")
        assert "canary" not in page
        assert len(page.splitlines()) <= before + 30  # one family more at most


def test_h82_a_label_is_escaped_whatever_is_in_it() -> None:
    from prometheus_client.exposition import generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    from wings_proxy.lifecycle.machine import Lifecycle
    from wings_proxy.lifecycle.state import Rules
    from wings_proxy.telemetry.state_metrics import StateMetrics

    metrics = RequestMetrics([])
    rules = Rules(
        probe_failures=1, probe_successes=1, startup_timeout=1, quiet=0, drain=0, engine_kill=1, load_kill=None
    )
    life = Lifecycle(rules, 0.0)
    hostile = 'a"b\\c\nwings_forged 1\n模型'
    StateMetrics(metrics.registry, snapshot=lambda: life.snapshot, clock=float, build={"model_name": hostile})
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
    }
    assert families["wings_build_info"].samples[0].labels["model_name"] == hostile
    assert "wings_forged" not in families


async def test_h83_after_the_engines_end_its_gauges_are_gone(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_PROBE_FAILURES="1") as (running, engine):
        await running.get("/metrics")
        await engine.crash()
        await running.health(lambda body: body["state"] != "ready")
        _, page = await running.get("/metrics")
        assert "vllm:num_requests_running" not in page
        assert "wings_engine_requests_running{" not in page


async def test_h84_metrics_of_a_failed_and_a_draining_sidecar(tmp_path: Path) -> None:
    async with sidecar(tmp_path, free_port()) as running:
        running.status("running")
        await state(running, "loading")
        running.status("exited", code=1)
        await state(running, "failed")
        assert await metric(running, 'wings_engine_state{state="failed"}') == 1
        answers = await asyncio.gather(*(get(running, b"/metrics") for _ in range(10)))
        assert [answer.status for answer in answers] == [200] * 10
        openmetrics = await get(running, b"/metrics", b"Accept: application/openmetrics-text; version=1.0.0")
        assert openmetrics.body.endswith(b"# EOF\n")
        async with running.client.head(f"http://127.0.0.1:{running.port}/metrics") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        packed = await get(running, b"/metrics", b"Accept-Encoding: gzip")
        body = gzip.decompress(packed.body) if packed.one(b"Content-Encoding") == b"gzip" else packed.body
        assert b'\nwings_engine_state{state="failed"} 1.0\n' in body


async def test_h84_metrics_while_the_last_answers_are_given(fake_engine: StartEngine, tmp_path: Path) -> None:
    switches = {"tokens": 5000, "token_seconds": 0.01}
    async with scene(fake_engine, tmp_path, engine=switches, WINGS_DRAIN_SECONDS="30") as (running, engine):
        client = asyncio.create_task(stream(running, max_tokens=5000), name="client")
        await engine.until(lambda: engine.running == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await state(running, "draining")
        assert await metric(running, 'wings_engine_state{state="draining"}') == 1
        assert await metric(running, "wings_requests_in_flight") == 1
        client.cancel()
        await asyncio.wait([client])


async def test_h85_no_key_prompt_or_query_in_logs_or_metrics(
    fake_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    volume = tmp_path / "volume"
    volume.mkdir()
    async with scene(fake_engine, volume, WINGS_API_KEYS_FILE=str(keys)) as (running, _):
        for key in (b"first-key", b"CANARY-wrong"):
            client = await connect(running)
            body = json.dumps({"messages": [{"role": "user", "content": "CANARY"}], "model": "CANARY"}).encode()
            await client.post(
                body,
                fields=b"Authorization: Bearer %b\r\nCookie: CANARY\r\n" % key,
                target=b"/v1/chat/completions?k=CANARY",
            )
            await client.answer()
            client.close()
        await get(running, b"/CANARY?CANARY")
        _, page = await running.get("/metrics")
    lines = "".join(repr(vars(record)) for record in caplog.records if record.name.startswith("wings_proxy"))
    for secret in ("CANARY", "first-key", "second-key"):
        assert secret not in page
        assert secret not in lines


HOSTILE = (
    b"GET /v1/models?%0aINFO%20forged%1b[31m HTTP/1.1\r\nHost: x\r\n",
    b"GET /none\xe2\x80\xaeINFO%0d%0aforged HTTP/1.1\r\nHost: x\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUser-Agent: a\x1b[31m\xc2\x85\r\nX-Request-Id: \xe2\x80\xa8forged\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: \xe2\x80\xa8forged\r\nX-Forwarded-For: \x9b0m\xff\r\n",
)


@pytest.mark.parametrize("form", ["json", "plain"])
def test_h86_no_request_forges_a_log_line(tmp_path: Path, form: str) -> None:
    """Through the whole program: each line of its output is one of ours."""
    port, log = free_port(), tmp_path / "log"
    volume = tmp_path / "volume"
    volume.mkdir()
    with (
        log.open("wb") as output,
        fake_engine_program(port),
        program(volume, port, stdout=output.fileno(), WINGS_ACCESS_LOG="true", WINGS_LOG_FORMAT=form) as running,
    ):
        for head in HOSTILE:
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(head + b"Connection: close\r\n\r\n")
                assert client.makefile("rb").readline().startswith(b"HTTP/1.")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(40) == 0
    lines = log.read_text("utf-8").splitlines()
    assert [line for line in lines if "/v1/models" in line]
    for line in lines:
        assert line.isprintable(), line
        assert re.match(r'\{"time": "20|20\d\d-\d\d-\d\dT\S+ (?:info|warning|error) ', line), line


@pytest.mark.parametrize("formatter", [_JsonFormatter(), _PlainFormatter()])
def test_h86_nothing_forges_a_log_line(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("wings_proxy", 20, "", 0, "a\nINFO forged \x1b[31m\u202e\u2028", None, None)
    record.fields = {"path": "/x\r\nforged \x9b0m"}
    line = formatter.format(record)
    assert len(line.splitlines()) == 1
    assert not any(character in line for character in "\x1b\x9b\u202e\r\n")
