"""Every connection inherits what the listener set; each turn of the loop accepts some."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise

import pytest
from aiohttp import web

from tests.ports import free_port
from wings_proxy.server.listener import Listener, _options

LINUX = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="an option of Linux")


async def accepted(silence_seconds: float) -> dict[str, int]:
    """Return the options of a connection, as its server has it."""
    sockets: asyncio.Queue[socket.socket] = asyncio.Queue()

    async def handler(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        sockets.put_nowait(request.transport.get_extra_info("socket"))
        return web.Response()

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    try:
        port = free_port()
        await Listener(runner, "127.0.0.1", port, backlog=8, silence_seconds=silence_seconds).start()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        found = await sockets.get()
        values = {
            name: found.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT")
        }
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()
        await writer.wait_closed()
    finally:
        await runner.cleanup()
    return values


@LINUX
@pytest.mark.parametrize(
    ("seconds", "idle", "interval", "milliseconds"),
    [(60.0, 60, 15, 60_000), (0.1, 1, 1, 100), (86_400.0, 32_767, 8_191, 86_400_000)],
)
async def test_a_connection_gives_a_silent_peer_up(seconds: float, idle: int, interval: int, milliseconds: int) -> None:
    assert await accepted(seconds) == {
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_USER_TIMEOUT": milliseconds,
        "TCP_NOTSENT_LOWAT": 65_536,
    }


def test_what_a_system_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT"):
        monkeypatch.delattr(socket, name, raising=False)
    assert _options(60.0) == [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ]


@asynccontextmanager
async def listening(
    host: str | None = "127.0.0.1", backlog: int = 1024, most_waiting: int = 0
) -> AsyncIterator[tuple[int, web.Server]]:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    server = web.Server(handler)
    runner = web.ServerRunner(server)
    await runner.setup()
    port = free_port()
    try:
        await Listener(runner, host, port, backlog=backlog, silence_seconds=60, most_waiting=most_waiting).start()
        yield port, server
    finally:
        await runner.cleanup()


@contextmanager
def clients(port: int, number: int) -> Iterator[list[socket.socket]]:
    """Connect that many; the kernel does it without the server."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(number)]
        for client in found:
            client.connect(("127.0.0.1", port))
        yield found


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_of_many_that_come_at_once_each_turn_accepts_some() -> None:
    async with listening() as (port, server):
        with clients(port, 150):
            met = [0]
            while met[-1] < 150:
                await turns(1)
                met.append(len(server.connections))
            came = [after - before for before, after in pairwise(met)]
            assert max(came) == 64
            # Some turns pass between an accepted socket and its connection.
            assert len(came) < 15
        while server.connections:
            await turns(1)


async def test_who_has_something_to_say_is_served_before_who_is_silent() -> None:
    async with listening(most_waiting=1000) as (port, server):
        with clients(port, 800), clients(port, 1) as (probe,):
            probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
            probe.setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(probe, 4096)
            assert answer.startswith(b"HTTP/1.0 200")
            assert len(server.connections) < 800  # it came last
            while len(server.connections) < 800:
                await turns(1)
        while server.connections:
            await turns(1)


async def test_no_more_are_accepted_than_may_wait() -> None:
    async with listening() as (port, server):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with clients(port, 600):
            while len(server.connections) < 600:
                served = len(server.connections)
                await turns(1)
                # Besides the clients' own ends: those that are served, those on their way, those that wait.
                assert len(os.listdir("/proc/self/fd")) - before - 600 <= served + 4 * 64  # noqa: PTH208
        while server.connections:
            await turns(1)


async def test_who_waits_at_the_end_is_answered_too() -> None:
    async with listening(most_waiting=1000) as (port, server):
        with clients(port, 300) as many:
            for client in many:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while not server.connections:
                await turns(1)
            runner_ends = len(server.connections)
            assert runner_ends < 300
            many[-1].setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(many[-1], 4096)
            assert answer.startswith(b"HTTP/1.0 200")


async def test_without_a_host_every_address_is_listened_on() -> None:
    async with listening(host=None) as (port, _):
        for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"hello")
            writer.close()
            await writer.wait_closed()


async def test_a_port_that_is_taken_leaves_nothing_open() -> None:
    async with listening() as (port, _):
        runner = web.ServerRunner(web.Server(lambda _: None))  # type: ignore[arg-type, return-value]
        await runner.setup()
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(OSError, match="in use"):
            await Listener(runner, "127.0.0.1", port, backlog=8, silence_seconds=60).start()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        await runner.cleanup()


async def test_without_descriptors_it_waits_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wings_proxy.server.listener._RETRY_SECONDS", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with listening() as (port, server):
        with clients(port, 3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
            try:
                while not caplog.messages:
                    await turns(1)
                await turns(100)  # in which it does not try
                assert len(caplog.messages) < 5
                assert not server.connections
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while len(server.connections) < 3:
                await turns(1)
        while server.connections:
            await turns(1)
    assert set(caplog.messages) == {"no connection can be accepted for 0.05 s: Too many open files"}


async def test_it_may_end_while_it_waits_for_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with listening() as (port, _):
        with clients(port, 1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
            try:
                while not caplog.messages:
                    await turns(1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_was_accepted_before_the_end_is_answered() -> None:
    async with listening() as (port, server):
        with clients(port, 1) as (client,):
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while not server.connections:
                await turns(1)
            client.setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(client, 4096)
            assert answer.startswith(b"HTTP/1.0 200")
