"""G. Resources: descriptors, memory, disks, time."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import resource
import sys
import time
from pathlib import Path

import pytest

from tests.fake_engine import StartEngine
from tests.faults.scene import CHAT, CHAT_BODY, chat_url, connect, get, metric, scene, state, stream
from tests.sidecar import sidecar
from wings_proxy.handover.volume import Volume
from wings_proxy.server.connection_cap import RESERVE, cap_for
from wings_proxy.telemetry.log import Lines


def test_g71_the_cap_leaves_descriptors_for_ourselves() -> None:
    for descriptors in (256, 1024, 20_000, 1_048_576):
        assert 2 * cap_for(descriptors) + RESERVE < descriptors


async def test_g71_few_descriptors_are_survived(fake_engine: StartEngine, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with scene(fake_engine, tmp_path) as (running, _):
        clients = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
        try:
            for _ in range(200):
                try:
                    clients.append(await connect(running))
                except OSError:
                    break  # ours and the sidecar's are one process: either may be the first without
        finally:
            for client in clients:
                client.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await asyncio.sleep(1.1)  # asyncio looks again after a second
        assert (await get(running, b"/v1/models")).status == 200


class Refusing(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stream", [Refusing()])
async def test_g72_g73_a_gone_reader_or_a_full_disk_costs_lines_and_no_request(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    lines = Lines(stream)
    lines.keep("one\n")
    lines.flush()
    assert lines.lost
    monkeypatch.setattr(sys, "stderr", stream)
    async with scene(fake_engine, tmp_path) as (running, _):
        assert (await get(running, b"/v1/models")).status == 200


async def test_g74_many_uploads_at_once_stay_within_memory(fake_engine: StartEngine, tmp_path: Path) -> None:
    """200 of 1 MiB under a limit of the process: `test_load.py`. Here: what is unread is not kept."""
    async with scene(fake_engine, tmp_path, WINGS_BODY_TIMEOUT_SECONDS="5") as (running, _):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clients = [await connect(running) for _ in range(20)]
        for client in clients:
            await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n" % CHAT + bytes(65536))
        await asyncio.sleep(0.1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
        for client in clients:
            client.close()


async def test_g75_probes_are_answered_among_busy_streams(fake_engine: StartEngine, tmp_path: Path) -> None:
    """On a tenth of a core: `test_load.py`."""
    switches = {"tokens": 5000, "token_seconds": 0.001}
    async with scene(fake_engine, tmp_path, engine=switches) as (running, engine):
        streams = [asyncio.create_task(stream(running, max_tokens=5000), name="client") for _ in range(20)]
        await engine.until(lambda: engine.running == 20, 20)
        assert (await get(running, b"/livez")).status == 200
        assert not any(task.done() for task in streams)
        for task in streams:
            task.cancel()
        await asyncio.wait(streams)


async def test_g76_many_requests_leave_no_tasks_and_no_objects_behind(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, engine):

        async def some() -> None:
            for _ in range(300):
                async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
                    await answer.read()
            gc.collect()

        def kept() -> int:
            return len(gc.get_objects()) - len(engine.requests)  # the engine keeps each of them

        await some()
        tasks, before = len(asyncio.all_tasks()), kept()
        await some()
        assert len(asyncio.all_tasks()) <= tasks + 1
        left = kept() - before
        assert left < 200  # not one for each


async def test_g77_a_blocked_loop_is_survived_and_seen(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path) as (running, _):
        time.sleep(0.5)  # noqa: ASYNC251 - the loop is to stand still
        assert (await running.get("/livez"))[0] == 200
        # Four times a second it looks: of half a second it sees a quarter at the least.
        name = "wings_event_loop_lag_seconds"
        assert await metric(running, f"{name}_sum") > 0.2
        assert await metric(running, f"{name}_count") > await metric(running, f'{name}_bucket{{le="0.1"}}')


async def test_g72_a_volume_that_hangs_does_not_keep_a_request_waiting_for_ever(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("wings_proxy.lifecycle.gate.VOLUME_SECONDS", 0.1)
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        running.status("running")
        await state(running, "ready")
        monkeypatch.setattr(Volume, "take_hold", hang)
        assert (await get(running, b"/v1/models")).status == 200
