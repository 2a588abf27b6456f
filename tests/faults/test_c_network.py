"""C. The network between proxy and engine."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.fake_engine import Fault, StartEngine
from tests.faults.program import ROOT
from tests.faults.scene import CHAT_BODY, chat_url, get, metric, scene, stream
from tests.ports import free_port
from tests.wire import EngineSide, proxy


async def test_c35_an_engine_that_closes_idle_connections_costs_nobody_an_answer(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.CLOSE_AFTER}) as (running, engine):
        for _ in range(50):
            async with running.client.post(chat_url(running), json=CHAT_BODY) as answer:
                assert answer.status == 200
                await answer.read()
        assert len([request for request in engine.requests if request.method == "POST"]) == 50


async def test_c35_a_post_the_engine_may_have_read_is_never_sent_twice() -> None:
    async def one_answer(engine: EngineSide) -> None:
        await engine.request()
        await engine.answer()
        await engine.request()
        engine.close()

    async with proxy(one_answer) as running:
        client = await running.client()
        await client.post()
        assert (await client.answer()).status == 200
        await client.post()
        assert (await client.answer()).status == 502
        assert len(running.engine.requests) == 2


async def test_c36_nobody_listens(tmp_path: Path) -> None:
    async with proxy() as running:
        await running.engine.stop()
        client = await running.client()
        await client.get()
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "engine_unreachable")


async def test_c36_a_full_backlog_is_given_up_at_the_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            waiting.append(sock)
        async with proxy(engine_port=full.getsockname()[1], connect_timeout_seconds=0.2) as running:
            client = await running.client()
            await client.get()
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "engine_unreachable")
        for sock in waiting:
            sock.close()


async def test_c37_the_engine_listens_on_ipv4_alone_and_we_on_both(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, ready=False, WINGS_HOST="") as (running, _):
        await running.health(lambda body: body["state"] == "ready")
        addresses = ["127.0.0.1"]
        with socket.socket(socket.AF_INET6) as probe:
            addresses += ["::1"] if probe.connect_ex(("::1", running.port)) == 0 else []
        for address in addresses:
            reader, writer = await asyncio.open_connection(address, running.port)
            writer.write(b"GET /v1/models HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await reader.readline()
            writer.close()


async def test_c38_proxy_variables_of_the_pod_are_not_for_the_engine(
    fake_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with scene(fake_engine, tmp_path) as (running, _):
        assert (await get(running, b"/v1/models")).status == 200


async def test_c39_more_than_a_hundred_streams_all_reach_the_engine(fake_engine: StartEngine, tmp_path: Path) -> None:
    switches = {"tokens": 10_000, "token_seconds": 0.05, "max_num_seqs": 1000}
    async with scene(fake_engine, tmp_path, engine=switches) as (running, engine):
        running.client.connector._limit = 0  # type: ignore[union-attr]
        streams = [asyncio.create_task(stream(running, max_tokens=5000), name="client") for _ in range(150)]
        await engine.until(lambda: engine.running == 150, 20)
        for task in streams:
            task.cancel()
        await asyncio.wait(streams)
        await engine.until(lambda: engine.running == 0)


async def test_c39_over_an_explicit_limit_the_answer_is_429(fake_engine: StartEngine, tmp_path: Path) -> None:
    async with scene(fake_engine, tmp_path, engine={"fault": Fault.HANG}, WINGS_MAX_INFLIGHT="1") as (running, engine):
        first = asyncio.create_task(stream(running), name="client")
        await engine.until(lambda: any(request.method == "POST" for request in engine.requests))
        answer = await get(running, b"/v1/models")
        assert (answer.status, answer.one(b"Retry-After")) == (429, b"1")
        first.cancel()
        await asyncio.wait([first])


def lose_packets_of(port: int) -> int:
    """Have the kernel drop what arrives at this process's connections with *port* at either end; return how many.

    No end of file, no reset: nothing comes any more, not even what acknowledges. As a partition, seen from both sides.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
    lost = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if not Path("/proc/self/fd", name).is_socket():
            continue  # or gone meanwhile: the directory's own
        with socket.socket(fileno=os.dup(int(name))) as sock:
            try:
                ends = {sock.getsockname()[1], sock.getpeername()[1]} if sock.family == socket.AF_INET else set()
            except OSError:
                continue  # a listener
            if port in ends:
                sock.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
                lost += 1
    return lost


@pytest.mark.slow
async def test_c40_packets_that_vanish_free_the_slot_at_the_deadline(fake_engine: StartEngine, tmp_path: Path) -> None:
    switches = {"tokens": 100_000, "token_seconds": 0.05}
    async with scene(fake_engine, tmp_path, engine=switches, WINGS_IDLE_TIMEOUT_SECONDS="3") as (running, engine):
        async with running.client.post(chat_url(running), json={**CHAT_BODY, "stream": True}) as answer:
            assert (await answer.content.readuntil(b"\n\n")).startswith(b"data: ")
            assert await metric(running, "wings_requests_in_flight") == 1
            assert lose_packets_of(engine.port) >= 2
            received = bytearray()
            with pytest.raises(aiohttp.ClientError):  # noqa: PT012 - the pieces before it count
                async for piece in answer.content.iter_any():
                    received += piece
        assert b'"code": "upstream_timeout"' in received
        assert b"[DONE]" not in received
        assert await metric(running, "wings_requests_in_flight") == 0
        assert await metric(running, 'wings_api_errors_total{code="upstream_timeout"}') == 1
        # The next one gets a connection of its own, and what it asked for.
        assert (await get(running, b"/v1/models")).status == 200


@pytest.mark.slow
@pytest.mark.skipif(
    (os.geteuid() != 0 or shutil.which("ip") is None) and not os.environ.get("CI"),
    reason="a network namespace needs root, and routes need iproute2",
)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_c40_a_client_whose_machine_vanished_gives_its_slot_back(tmp_path: Path, loop: str) -> None:
    """Its tokens never fill a buffer: without a bound of its own, TCP sends them again for a quarter of an hour."""
    inside = 'ip link set lo up && exec "$0" -m tests.faults.vanishing "$@"'
    told = json.loads(
        subprocess.run(
            ["unshare", "--net", "sh", "-c", inside, sys.executable, str(tmp_path), loop],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        ).stdout
    )
    print(f"{loop}: the slot was free {told['seconds']:.1f} s after the client had vanished")
    assert (told["stalls"], told["status_499"]) == (1, 1)
