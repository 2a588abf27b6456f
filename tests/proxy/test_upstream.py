"""Connections to the engine: whose bytes are whose, what an end means, and what the pool keeps."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from wings_proxy.proxy.exchange import UpstreamFault
from wings_proxy.proxy.upstream import Connection, Pool, UpstreamError


class Listener:
    """An engine that only accepts; the test reads and writes its blocking sockets."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        peer, _ = self._socket.accept()
        peer.settimeout(2)
        self.accepted.append(peer)
        return peer

    def close(self) -> None:
        self._socket.close()
        for peer in self.accepted:
            peer.close()


class Receiver:
    """Keeps what a connection tells it."""

    def __init__(self) -> None:
        self.data = b""
        self.end: tuple[bool, bool] | None = None
        self.changed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def connection_ended(self, *, orderly: bool, unread: bool) -> None:
        self.end = (orderly, unread)
        self.changed.set()

    async def ended(self) -> tuple[bool, bool]:
        async with asyncio.timeout(40):
            while self.end is None:
                self.changed.clear()
                await self.changed.wait()
        return self.end


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def pool(listener: Listener) -> AsyncIterator[Pool]:
    pool = Pool(asyncio.get_running_loop(), listener.port, connect_timeout_seconds=1.0, idle_seconds=4.0)
    yield pool
    pool.close()
    listener.close()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


# ---- one connection


async def test_bytes_go_to_the_exchange(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    connection.write(b"request")
    await settle()
    assert peer.recv(100) == b"request"
    peer.sendall(b"answer")
    await asyncio.wait_for(receiver.changed.wait(), 40)
    assert receiver.data == b"answer"
    pool.give_back(connection, reusable=False)


async def test_an_end_of_file_is_orderly_and_proves_nothing(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    connection.write(b"request")
    await settle()
    peer.recv(100)
    peer.close()
    assert await receiver.ended() == (True, False)
    assert not connection.open


async def test_a_request_that_met_a_closed_socket_was_provably_not_read(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    listener.accept().close()
    receiver = Receiver()
    connection.begin(receiver)
    connection.write(b"request")
    assert await receiver.ended() == (True, True)


async def test_a_socket_closed_over_an_unread_request_may_be_one_that_aborts(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    connection.write(b"request")
    await settle()
    peer.close()
    assert await receiver.ended() == (False, False)


async def test_an_engine_that_read_it_all_and_aborts_proves_nothing(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    connection.write(b"request")
    await settle()
    assert peer.recv(100) == b"request"
    reset(peer)
    assert await receiver.ended() == (False, False)


async def test_a_reset_is_not_an_orderly_end(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    reset(peer)
    assert await receiver.ended() == (False, False)


async def test_an_answer_is_read_even_when_the_next_write_fails(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    connection.write(b"part of a body")
    await settle()
    peer.sendall(b"413")
    peer.close()  # over unread bytes: a reset follows the answer
    for _ in range(3):
        connection.write(b"more of it")
    await receiver.ended()
    assert receiver.data == b"413"


async def test_writing_to_an_ended_connection_goes_nowhere(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    listener.accept()
    connection.abort()
    connection.write(b"x")
    connection.pause_reading()
    connection.resume_reading()
    await connection.drain()
    assert not connection.writing_paused


async def test_reading_pauses(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    receiver = Receiver()
    connection.begin(receiver)
    connection.pause_reading()
    peer.sendall(b"answer")
    await asyncio.sleep(0.02)
    assert receiver.data == b""
    connection.resume_reading()
    await asyncio.wait_for(receiver.changed.wait(), 40)
    assert receiver.data == b"answer"


async def fill(connection: Connection) -> None:
    """Write until the engine's buffers are full."""
    while not connection.writing_paused:
        connection.write(b"x" * 1_000_000)
        await asyncio.sleep(0)


async def test_drain_waits_for_an_engine_that_does_not_read(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    connection.begin(Receiver())
    await fill(connection)
    draining = asyncio.create_task(connection.drain())
    await asyncio.sleep(0.02)
    assert not draining.done()
    peer.setblocking(False)
    while not draining.done():
        try:
            peer.recv(10_000_000)
        except BlockingIOError:
            await asyncio.sleep(0)
    await draining
    connection.abort()


async def test_drain_ends_with_the_connection(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    connection.begin(Receiver())
    await fill(connection)
    draining = asyncio.create_task(connection.drain())
    await asyncio.sleep(0)
    reset(peer)
    await asyncio.wait_for(draining, 40)


async def test_giving_up_a_drain_leaves_it_to_others(pool: Pool, listener: Listener) -> None:
    connection = await pool.connect()
    peer = listener.accept()
    connection.begin(Receiver())
    await fill(connection)
    first, second = (asyncio.create_task(connection.drain()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    assert first.cancelled()
    assert not second.done()
    reset(peer)
    await asyncio.wait_for(second, 40)


# ---- opening one


async def test_nobody_listens(pool: Pool, listener: Listener) -> None:
    listener.close()
    with pytest.raises(UpstreamError) as caught:
        await pool.connect()
    assert caught.value.fault is UpstreamFault.CONNECT_REFUSED


async def test_nobody_accepts() -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = full.getsockname()[1]
    crowd = []
    for _ in range(8):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        crowd.append(sock)
    pool = Pool(asyncio.get_running_loop(), port, connect_timeout_seconds=0.1, idle_seconds=4.0)
    with pytest.raises(UpstreamError) as caught:
        await pool.connect()
    assert caught.value.fault is UpstreamFault.CONNECT_TIMEOUT
    for sock in (full, *crowd):
        sock.close()


async def test_no_descriptor_is_left(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("wings_proxy.proxy.upstream.socket.socket", none_left)
    with pytest.raises(UpstreamError) as caught:
        await pool.connect()
    assert caught.value.fault is UpstreamFault.CONNECT_FAILED


async def test_giving_up_while_connecting_leaves_nothing_open(pool: Pool, listener: Listener) -> None:
    connecting = asyncio.create_task(pool.connect())
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert pool.opened == 0


# ---- the pool


async def used(pool: Pool, listener: Listener) -> tuple[Connection, socket.socket]:
    connection = await pool.connect()
    peer = listener.accept()
    connection.begin(Receiver())
    return connection, peer


async def test_the_last_one_given_back_is_used_first(pool: Pool, listener: Listener) -> None:
    first, _ = await used(pool, listener)
    second, _ = await used(pool, listener)
    pool.give_back(first, reusable=True)
    pool.give_back(second, reusable=True)
    assert pool.idle == 2
    assert pool.take() is second
    assert pool.take() is first
    assert pool.take() is None
    first.abort()
    second.abort()


async def test_one_that_is_not_reusable_is_closed(pool: Pool, listener: Listener) -> None:
    connection, peer = await used(pool, listener)
    pool.give_back(connection, reusable=False)
    await settle()
    assert peer.recv(1) == b""
    assert pool.take() is None


async def test_one_with_stray_bytes_the_loop_has_not_seen_is_not_used(pool: Pool, listener: Listener) -> None:
    connection, peer = await used(pool, listener)
    pool.give_back(connection, reusable=True)
    peer.sendall(b"stray")
    assert pool.take() is None
    assert not connection.open


async def test_one_with_stray_bytes_the_loop_has_seen_is_closed(pool: Pool, listener: Listener) -> None:
    connection, peer = await used(pool, listener)
    pool.give_back(connection, reusable=True)
    peer.sendall(b"stray")
    while connection.open:  # noqa: ASYNC110 - nobody tells of an idle connection's end
        await asyncio.sleep(0)
    assert pool.take() is None


@pytest.mark.parametrize("seen", [False, True])
async def test_one_the_engine_closed_is_not_used(pool: Pool, listener: Listener, seen: bool) -> None:
    connection, peer = await used(pool, listener)
    pool.give_back(connection, reusable=True)
    peer.close()
    while seen and connection.open:  # noqa: ASYNC110 - nobody tells of an idle connection's end
        await asyncio.sleep(0)
    assert pool.take() is None


async def test_one_the_engine_reset_is_not_used(pool: Pool, listener: Listener) -> None:
    connection, peer = await used(pool, listener)
    pool.give_back(connection, reusable=True)
    reset(peer)
    assert pool.take() is None


async def test_an_engine_that_closes_after_each_answer_gets_a_new_connection_each_time(listener: Listener) -> None:
    pool = Pool(asyncio.get_running_loop(), listener.port, connect_timeout_seconds=1.0, idle_seconds=0.0)
    connection, peer = await used(pool, listener)
    pool.give_back(connection, reusable=True)
    assert pool.idle == 0
    assert pool.take() is None
    assert await asyncio.to_thread(peer.recv, 1) == b""
    listener.close()


async def test_idle_connections_are_closed_before_the_engine_would(listener: Listener) -> None:
    pool = Pool(asyncio.get_running_loop(), listener.port, connect_timeout_seconds=1.0, idle_seconds=0.05)
    first, first_peer = await used(pool, listener)
    second, second_peer = await used(pool, listener)
    pool.give_back(first, reusable=True)
    pool.give_back(second, reusable=True)
    # As if it had come back later: the timer that ends the first one finds it too young.
    second.idle_since += 0.2
    assert await asyncio.to_thread(first_peer.recv, 1) == b""
    assert pool.idle == 1 or pool.loop.time() >= second.idle_since + 0.05
    assert await asyncio.to_thread(second_peer.recv, 1) == b""
    assert pool.idle == 0
    assert pool.loop.time() >= second.idle_since + 0.05 - 0.002
    listener.close()


async def test_one_that_lay_too_long_is_not_used_even_if_the_timer_is_late(pool: Pool, listener: Listener) -> None:
    connection, _ = await used(pool, listener)
    pool.give_back(connection, reusable=True)
    connection.idle_since -= 4.0
    assert pool.take() is None


async def test_a_new_run_of_the_engine_gets_new_connections(pool: Pool, listener: Listener) -> None:
    idle, idle_peer = await used(pool, listener)
    busy, busy_peer = await used(pool, listener)
    pool.give_back(idle, reusable=True)
    pool.drop_idle()
    await settle()
    assert idle_peer.recv(1) == b""
    pool.give_back(busy, reusable=True)
    await settle()
    assert busy_peer.recv(1) == b""
    assert pool.idle == 0


async def test_a_closed_pool_keeps_nothing(pool: Pool, listener: Listener) -> None:
    connection, _ = await used(pool, listener)
    pool.close()
    pool.give_back(connection, reusable=True)
    assert pool.idle == 0
    assert not connection.open
