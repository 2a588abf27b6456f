"""A. The engine process."""

# ruff: noqa: SIM117 - the scene, and what happens in it

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import Fault, Foreign, Health, StartEngine
from tests.faults.scene import CHAT_BODY, STREAM, chat_url, get, metric, scene, state, stream
from tests.ports import free_port
from tests.sidecar import RUN, sidecar
from wings_proxy.config.load import ConfigError, load_config


async def test_a1_an_engine_not_started_yet(tmp_path: Path) -> None:
    async with sidecar(tmp_path, free_port()) as running:
        await running.health(lambda body: body["state"] == "starting")
        answer = await get(running, b"/v1/models")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "engine_not_ready")
        assert int(answer.one(b"Retry-After") or 0) >= 1
        assert [(await running.get(path))[0] for path in ("/livez", "/readyz", "/livez/engine")] == [200, 503, 200]
        assert await metric(running, 'wings_engine_state{state="starting"}') == 1


async def test_a2_a_start_that_takes_too_long_fails_and_still_recovers(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    port = free_port()
    async with sidecar(tmp_path, port, WINGS_STARTUP_TIMEOUT_SECONDS="0.2") as running:
        running.status("running")
        failed = await state(running, "failed")
        assert failed["reason"]
        assert [(await running.get(path))[0] for path in ("/livez", "/readyz", "/livez/engine")] == [200, 503, 200]
        await fake_engine(port=port)
        await state(running, "ready")


@pytest.mark.parametrize("status", [503, 404, 500])
async def test_a3_a_health_that_says_no_is_loading_and_not_failed(
    fake_engine: StartEngine, tmp_path: Path, status: int
) -> None:
    switches = {"health": Health.STATUS, "health_status": status}
    async with scene(fake_engine, tmp_path, ready=False, engine=switches) as (running, engine):
        running.status("running")
        await state(running, "loading")
        await engine.until(lambda: len(engine.requests) >= 3)
        assert (await running.get("/health"))[1]["state"] == "loading"
        engine.settings.health = Health.OK
        await state(running, "ready")


async def test_a4_generation_hangs_while_health_says_200(fake_engine: StartEngine, tmp_path: Path) -> None:
    switches = {"fault": Fault.HANG}
    limit: dict[str, Any] = {"WINGS_FIRST_BYTE_TIMEOUT_SECONDS": "0.2"}
    async with scene(fake_engine, tmp_path, engine=switches, **limit) as (running, _):
        async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (504, "upstream_timeout")
        assert await metric(running, 'wings_api_errors_total{code="upstream_timeout"}') == 1


@pytest.mark.parametrize("health", [Health.HANG, Health.DRIP])
async def test_a5_health_that_hangs_or_drips(fake_engine: StartEngine, tmp_path: Path, health: Health) -> None:
    limits: dict[str, Any] = {"WINGS_PROBE_TIMEOUT_SECONDS": "0.05", "WINGS_PROBE_FAILURES": "2"}
    async with scene(fake_engine, tmp_path, **limits) as (running, engine):
        engine.settings.health = health
        await state(running, "unhealthy")
        # One at a time: a probe that got no answer is gone before the next.
        assert engine.open_connections <= 2
        engine.settings.health = Health.OK
        await state(running, "ready")


async def test_a6_health_that_flaps_does_not_make_readiness_flap(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_PROBE_FAILURES="3") as (running, engine):
        engine.settings.health = Health.FLAP
        seen = len(engine.requests)
        await engine.until(lambda: len(engine.requests) >= seen + 8)
        assert (await running.get("/readyz"))[0] == 200
        assert await metric(running, 'wings_engine_state{state="unhealthy"}') == 0


@pytest.mark.parametrize(("health", "ready"), [(Health.HUGE, True), (Health.REDIRECT, False), (Health.CLOSE, False)])
async def test_a7_health_with_a_huge_body_or_a_redirect(
    fake_engine: StartEngine, tmp_path: Path, health: Health, ready: bool
) -> None:
    async with scene(fake_engine, tmp_path, ready=False, engine={"health": health}) as (running, engine):
        if ready:
            await state(running, "ready")
        else:
            await engine.until(lambda: len(engine.requests) >= 3)
            assert (await running.get("/readyz"))[0] == 503


async def test_a8_an_engine_killed_in_the_middle_of_streams(fake_engine: StartEngine, tmp_path: Path) -> None:
    switches = {"tokens": 10_000, "token_seconds": 0.01}
    async with scene(fake_engine, tmp_path, engine=switches, WINGS_PROBE_FAILURES="1") as (running, engine):
        streams = [asyncio.create_task(stream(running, max_tokens=5000), name="client") for _ in range(20)]
        await engine.until(lambda: engine.running == 20)
        await engine.crash()
        for received, clean in await asyncio.gather(*streams):
            assert not clean
            assert b"[DONE]" not in received
            assert json.loads(received.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))["error"]
        answer = await get(running, b"/v1/models")
        assert (answer.status, answer.one(b"X-Wings-Origin")) == (503, b"proxy")
        await running.health(lambda body: body["state"] != "ready")
        await engine.restart()
        await state(running, "ready")
        assert (await get(running, b"/v1/models")).status == 200


async def test_a9_an_engine_that_restarts_faster_than_a_probe(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, WINGS_PROBE_INTERVAL_SECONDS="60") as (running, engine):
        assert (await get(running, b"/v1/models")).status == 200
        await engine.crash()
        await engine.restart()
        await engine.until(lambda: engine.listening)
        # The pool's connections died with the old one.
        assert [(await get(running, b"/v1/models")).status for _ in range(5)] == [200] * 5


async def test_a10_a_crash_loop_is_seen_as_one(
    fake_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with sidecar(tmp_path, free_port()) as running:
        for number in range(1, 4):
            run = RUN[:-1] + str(number)
            running.status("running", run=run)
            await running.health(lambda body, run=run: body["run"] == run and body["state"] == "loading")  # type: ignore[misc]
            running.status("exited", code=1, run=run)
            await state(running, "failed")
        failed = await state(running, "failed")
        assert failed["restarts"] == 2
        assert failed["last_failure"]["exit_code"] == 1
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 3


@pytest.mark.parametrize(
    "fault",
    [
        Fault.CLOSE,
        Fault.RESET,
        Fault.CLOSE_IN_STATUS,
        Fault.CLOSE_IN_HEADERS,
        Fault.GARBAGE,
        Fault.TLS,
        Fault.SSH,
        Fault.ENDLESS_STATUS,
        Fault.BAD_LENGTH,
        Fault.TWO_LENGTHS,
        Fault.LENGTH_AND_CHUNKED,
        Fault.NUL_HEADER,
        Fault.CR_HEADER,
        Fault.MANY_HEADERS,
        Fault.SWITCH,
        Fault.FLOOD_1XX,
    ],
)
async def test_a11_an_answer_that_is_none(fake_engine: StartEngine, tmp_path: Path, fault: Fault) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": fault}) as (running, _):
        async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (502, "upstream_error"), fault
        assert await metric(running, 'wings_requests_total{code="502",route="/v1/chat/completions"}') == 1


@pytest.mark.parametrize("fault", [Fault.FIN, Fault.RST, Fault.IN_CHUNK, Fault.BAD_CHUNK, Fault.SHORT])
async def test_a12_an_answer_cut_short_never_looks_whole(
    fake_engine: StartEngine, tmp_path: Path, fault: Fault
) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": fault}) as (running, _):
        received, clean = await stream(running)
        assert not clean
        assert b"[DONE]" not in received


async def test_a12_a_truncated_gzip_body_passes_as_it_is(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.GZIP_TRUNCATED}) as (running, _):
        body = json.dumps(CHAT_BODY).encode()
        async with running.client.post(chat_url(running), data=body, auto_decompress=False) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert (await answer.read())[:2] == b"\x1f\x8b"


async def test_a13_an_error_event_of_the_engine_passes_unchanged(fake_engine: StartEngine, tmp_path: Path) -> None:
    """In the middle: behind the engine's third event. We add none of our own, and count the answer by its status."""
    switches = {"fault": Fault.ERROR_EVENT, "fault_after": 3}
    async with scene(fake_engine, tmp_path, engine=switches) as (running, engine):
        async with running.client.post(f"http://127.0.0.1:{engine.port}/v1/chat/completions", json=STREAM) as answer:
            told = [event for event in (await answer.read()).split(b"\n\n") if b"error" in event]
        received, clean = await stream(running)
        assert clean
        events = received.split(b"\n\n")
        assert [event for event in events if b"error" in event] == told
        assert [place for place, event in enumerate(events) if event in told] == [4]  # the role, three words
        assert events[5:] == [b"data: [DONE]", b""]
        assert await metric(running, 'wings_requests_total{code="200",route="/v1/chat/completions"}') == 1
        _, page = await running.get("/metrics")
        assert not any(
            line.startswith("wings_upstream_errors_total{") and not line.endswith(" 0.0") for line in page.splitlines()
        )


async def test_a14_silence_between_tokens_does_not_end_a_stream(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"tokens": 3, "token_seconds": 0.3}) as (running, _):
        received, clean = await stream(running)
        assert clean
        assert b": ping" not in received
        assert received.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("status", [429, 503])
async def test_a15_the_engines_own_refusal_passes_and_is_not_tried_again(
    fake_engine: StartEngine, tmp_path: Path, status: int
) -> None:
    switches = {"fault": Fault.STATUS, "fault_status": status, "fault_retry_after": "17"}
    async with scene(fake_engine, tmp_path, engine=switches) as (running, engine):
        async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (status, "17")
            assert "X-Wings-Origin" not in answer.headers
        assert len([request for request in engine.requests if request.method == "POST"]) == 1


async def test_a16_an_event_of_five_megabytes_streams_through(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.HUGE_EVENT}) as (running, _):
        received, clean = await stream(running)
        assert clean
        assert b"x" * (5 * 1024 * 1024) in received


@pytest.mark.parametrize("fault", [Fault.EXTRA, Fault.STRAY])
async def test_a17_bytes_nobody_asked_for_are_nobodys_answer(
    fake_engine: StartEngine, tmp_path: Path, fault: Fault
) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": fault}) as (running, _):
        async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
            assert answer.status == 200
            await answer.read()
        await asyncio.sleep(0.05)
        answer2 = await get(running, b"/v1/models")
        assert b"not your data" not in answer2.body
        assert b"tiny-qwen2" in answer2.body


async def test_a18_an_answer_before_the_body_was_read(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.EARLY_413}) as (running, _):
        async with running.client.post(chat_url(running), data=io.BytesIO(bytes(8 * 1024 * 1024))) as answer:
            assert answer.status == 413
            assert "X-Wings-Origin" not in answer.headers


@pytest.mark.parametrize(("code", "reason"), [(0, "exited"), (1, "crashed"), (137, "killed"), (139, "crashed")])
async def test_a19_an_end_nobody_asked_for_has_a_reason(tmp_path: Path, code: int, reason: str) -> None:
    async with sidecar(tmp_path, free_port()) as running:
        running.status("running")
        await state(running, "loading")
        running.status("exited", code=code)
        failed = await state(running, "failed")
        assert failed["last_failure"]["exit_code"] == code
        assert failed["last_failure"]["reason"].startswith(reason)


@pytest.mark.parametrize("foreign", [Foreign.HTML, Foreign.EMPTY])
async def test_a20_another_server_on_the_port_is_never_ready(
    fake_engine: StartEngine, tmp_path: Path, foreign: Foreign
) -> None:
    async with scene(fake_engine, tmp_path, ready=False, engine={"foreign": foreign}) as (running, engine):
        await engine.until(lambda: len(engine.requests) >= 4)
        assert (await running.get("/readyz"))[0] == 503
        assert await metric(running, 'wings_engine_state{state="ready"}') == 0


def test_a21_a_port_of_our_own_as_the_engines_is_refused() -> None:
    with pytest.raises(ConfigError, match="WINGS_PORT=9000: is also ENGINE_PORT"):
        load_config({"MODEL_PATH": "/m", "ENGINE_PORT": "9000"})
