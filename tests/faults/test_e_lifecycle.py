"""E. Signals and the life of processes; what needs real processes is told in full in the stories named here."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fake_engine import StartEngine
from tests.faults.scene import connect, get, metric, scene, state, stream
from tests.ports import free_port
from tests.sidecar import RUN, sidecar
from wings_proxy.lifecycle.supervisor import Supervisor

LONG = {"tokens": 10_000, "token_seconds": 0.02}


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_e53_idle_connections_do_not_delay_the_end(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        clients = [await connect(running) for _ in range(20)]
        assert (await get(running, b"/v1/models")).status == 200
        ask_to_stop()
        async with asyncio.timeout(40):
            assert await running.task == 0
            assert all([await client.at_end() for client in clients])
        for client in clients:
            client.close()


async def test_e54_streams_finish_while_readiness_says_no(fake_engine: StartEngine, tmp_path: Path) -> None:
    switches = {"tokens": 20, "token_seconds": 0.02}
    async with scene(fake_engine, tmp_path, engine=switches) as (running, engine):
        client = asyncio.create_task(stream(running), name="client")
        await engine.until(lambda: engine.running == 1)
        ask_to_stop()
        await state(running, "draining")
        assert (await running.get("/readyz"))[0] == 503
        refused = await get(running, b"/v1/models")
        assert (refused.status, refused.one(b"Connection")) == (503, b"close")
        received, clean = await client
        assert clean
        assert received.endswith(b"data: [DONE]\n\n")
        assert await running.task == 0


async def test_e54_at_the_drain_deadline_streams_get_an_honest_end(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine=LONG, WINGS_DRAIN_SECONDS="0.2") as (running, engine):
        client = asyncio.create_task(stream(running, max_tokens=5000), name="client")
        await engine.until(lambda: engine.running == 1)
        ask_to_stop()
        received, clean = await client
        assert not clean
        assert b'data: {"error"' in received
        assert b"[DONE]" not in received
        assert await running.task == 0


@pytest.mark.parametrize("loading", [False, True])
async def test_e55_a_stop_before_ready_is_quick(tmp_path: Path, loading: bool) -> None:
    async with sidecar(tmp_path, free_port(), WINGS_QUIET_SECONDS="30", WINGS_GRACE_PERIOD_SECONDS="300") as running:
        if loading:
            running.status("running")
            await state(running, "loading")
        ask_to_stop()
        async with asyncio.timeout(25):  # less than the quiet period, which is not waited for
            assert await running.task == 0


async def test_e56_the_second_signal_ends_at_once(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wings_proxy.stop_requests._ECHO_SECONDS", 0.0)
    async with scene(fake_engine, tmp_path, engine=LONG) as (running, engine):
        client = asyncio.create_task(stream(running, max_tokens=5000), name="client")
        await engine.until(lambda: engine.running == 1)
        ask_to_stop()
        await state(running, "draining")
        ask_to_stop()
        await asyncio.wait([running.task], timeout=40)
        assert running.task.cancelled()  # as a program: exit code 143, no traceback
        await client


async def test_e57_a_closed_terminal_and_a_gone_reader_are_no_end(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGPIPE)
        assert (await get(running, b"/v1/models")).status == 200


PROGRAM = [sys.executable, "-m", "wings_proxy"]


def started(volume: Path, port: int, **environ: str) -> subprocess.Popen[bytes]:
    settings = {"MODEL_PATH": "/m", "WINGS_PORT": str(port), "WINGS_HOST": "127.0.0.1", "ENGINE_PORT": str(free_port())}
    process = subprocess.Popen(
        PROGRAM,
        env={**os.environ, **settings, "SHARED_VOLUME_PATH": str(volume), **environ},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 40
    while not (volume / "start_command.sh").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_e58_number_one_of_a_container_obeys_sigterm(tmp_path: Path) -> None:
    """Process number 1 gets only signals it has handlers for: there is one, which makes the exit code 0."""
    process = started(tmp_path, free_port())
    process.terminate()
    assert process.wait(40) == 0


def test_e59_killed_and_started_again_at_once(tmp_path: Path) -> None:
    port = free_port()
    process = started(tmp_path, port)
    process.kill()
    process.wait()
    (tmp_path / "start_command.sh").unlink()
    again = started(tmp_path, port)
    again.terminate()
    assert again.wait(40) == 0


async def test_e60_a_pause_is_no_dead_engine(fake_engine: StartEngine, tmp_path: Path) -> None:
    """The loop stands still as under SIGSTOP; the process itself is stopped in `tests/test_signals.py`."""
    async with scene(fake_engine, tmp_path, WINGS_PROBE_FAILURES="2") as (running, engine):
        seen = len(engine.requests)
        time.sleep(1.0)  # noqa: ASYNC251 - the loop is to stand still
        woke = time.monotonic()
        await engine.until(lambda: len(engine.requests) > seen)
        await asyncio.sleep(0.02)
        # No burst to catch up: one that was due, and one in 50 ms.
        assert len(engine.requests) - seen <= 2 + (time.monotonic() - woke) / 0.05
        assert (await running.get("/readyz"))[0] == 200
        assert await metric(running, 'wings_engine_state{state="unhealthy"}') == 0


async def test_e61_a_clock_that_jumps_a_day_moves_nothing_but_timestamps(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, off_by = time.time, [0.0]
    # Before the start: what takes this clock takes it then.
    monkeypatch.setattr(time, "time", lambda: true() + off_by[0])
    async with scene(fake_engine, tmp_path) as (running, _):
        for off_by[0] in (-86_400.0, 86_400.0):
            assert (await get(running, b"/v1/models")).status == 200
            assert 0 <= (await running.get("/health"))[1]["since_seconds"] < 60
        assert 0 <= await metric(running, "wings_engine_state_age_seconds") < 60


async def test_e62_a_dead_supervisor_takes_the_process_along(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    # Here, so that the fixture's own wait for the end is not the one that sees it.
    async with scene(fake_engine, tmp_path) as (running, _):
        monkeypatch.setattr(Supervisor, "_tell_drift", broken)
        await asyncio.wait([running.task], timeout=40)
        assert isinstance(running.task.exception(), ExceptionGroup | ZeroDivisionError)


async def test_e62_livez_fails_when_the_supervisor_does_not_come_round(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        assert (await running.get("/livez"))[0] == 200
        monkeypatch.setattr("wings_proxy.server.status._SUPERVISOR_LATE_SECONDS", -1.0)
        assert (await running.get("/livez"))[0] == 503


@pytest.mark.parametrize("engine_first", [True, False])
async def test_e63_either_order_of_starts_converges(
    fake_engine: StartEngine, tmp_path: Path, engine_first: bool
) -> None:
    """All orders and kill points: `tests/test_restart_orders.py`, `tests/test_random_kills.py`."""
    port = free_port()
    if engine_first:
        await fake_engine(port=port)
    async with sidecar(tmp_path, port) as running:
        if not engine_first:
            await state(running, "starting")
            await fake_engine(port=port)
        await state(running, "ready")
    (tmp_path / "engine.alive").unlink()
    async with sidecar(tmp_path, port) as running:  # restarted: the engine is adopted
        await state(running, "ready")


async def test_e64_the_old_pod_serves_until_the_new_one_does(fake_engine: StartEngine, tmp_path: Path) -> None:
    """A whole rollout with endpoint lag, real processes: `tests/test_rollout.py`."""
    old = await fake_engine(tokens=10)
    async with sidecar(tmp_path, old.port, WINGS_QUIET_SECONDS="0.5") as running:
        running.status("running")
        await running.health(lambda body: body["run"] == RUN and body["state"] == "ready")
        assert (await get(running, b"/v1/models")).status == 200
        ask_to_stop()
        await state(running, "draining")
        # Endpoints lag: who still comes is served.
        assert (await get(running, b"/v1/models")).status == 200
        assert await running.task == 0
