"""G. Resources: descriptors, memory, disks, time."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.fake_engine import StartEngine
from tests.faults.scene import CHAT, CHAT_BODY, chat_url, connect, get, metric, scene, state, stream
from tests.sidecar import sidecar
from tests.wire import EngineSide, ScriptedEngine
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


def test_g72_lines_that_nobody_reads_are_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    given, received = 40_000, b""
    with os.fdopen(reader, "rb") as pipe:
        with os.fdopen(writer, "w") as stream:
            lines = Lines(stream)
            for number in range(given):
                lines.write(f"{number:099}")
            # The pipe holds 64 KiB and the writer 1 MiB, of 4 MB.
            lost = lines.lost
            assert given - 1024 * 1024 // 100 - 65536 // 100 - 100 < lost < given

            def read() -> None:
                nonlocal received
                received = pipe.read()

            reading = threading.Thread(target=read, name="reader")
            reading.start()
            lines.close()
        reading.join()
    assert received.count(b"\n") == given - lost


async def test_g74_many_uploads_at_once_stay_within_memory(tmp_path: Path) -> None:
    """200 of 1 MiB under a limit of the process: `test_load.py`. Here: what the engine does not take is not read."""

    async def takes_no_body(engine: EngineSide) -> None:
        while not (await engine.head()).start.startswith(b"POST"):
            await engine.answer(b'{"data": [{"id": "/models/tiny-qwen2"}]}')
        await asyncio.Event().wait()

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    engine, loop, upload, sent = ScriptedEngine(takes_no_body), asyncio.get_running_loop(), bytes(30 * 2**20), 0

    async def push(sock: socket.socket) -> None:
        nonlocal sent
        await loop.sock_connect(sock, ("127.0.0.1", running.port))
        await loop.sock_sendall(
            sock, b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT, len(upload))
        )
        for start in range(0, len(upload), 65536):
            await loop.sock_sendall(sock, memoryview(upload)[start : start + 65536])
            sent += 65536

    sockets = [socket.socket() for _ in range(20)]
    for sock in sockets:
        sock.setblocking(False)
    await engine.start()
    async with sidecar(tmp_path, engine.port, WINGS_BODY_TIMEOUT_SECONDS="60") as running:
        await state(running, "ready")
        before = resident_mib()
        clients = [asyncio.create_task(push(sock), name="client") for sock in sockets]
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.3)  # the kernel's buffers are full when nothing goes any more
        held, over = resident_mib() - before, [client for client in clients if client.done()]
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        for sock in sockets:
            sock.close()
        # The end of each stands behind what nobody reads: only the engine's can be seen.
        await engine.stop()
    assert not over
    assert sent > 20 * 65536
    # Of each what is untaken, what is on its way, and what the engine of this test has read and not taken.
    assert held < 20 * 3


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
