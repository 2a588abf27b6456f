"""Deadlines and seats of client connections, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tests.server.served import LATER, SIXTEEN_MIB, Served, served, to_the_end, unread
from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.server.client_connection import ClientConnection
from wings_proxy.server.connection_cap import RESERVE


async def test_a_head_that_does_not_end_is_answered_408_and_closed() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.client()
        await client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        answer = await client.answer()
        assert (answer.status, answer.one(b"Connection")) == (408, b"close")
        assert json.loads(answer.body)["error"]["code"] == "request_timeout"
        assert await client.at_end()
        assert running.refusals == [ErrorCode.REQUEST_TIMEOUT]


async def test_dripping_bytes_do_not_move_the_deadline() -> None:
    async with served(head_seconds=0.1) as running:
        client = await running.client()
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            await client.send(b"GET /livez HTTP/1.1\r\nA: ")
            while not running.refusals:
                await client.send(b"X")
                await asyncio.sleep(0.01)
        assert running.refusals == [ErrorCode.REQUEST_TIMEOUT]
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.client()
        assert await client.at_end()


async def test_the_next_head_has_its_deadline_too() -> None:
    async with served(head_seconds=0.2) as running:
        client = await running.client()
        assert await running.livez(client) == 200
        await client.send(b"GET /li")
        assert (await client.answer()).status == 408


async def test_between_two_requests_only_the_idle_time_counts() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.client()
        assert await running.livez(client) == 200
        await asyncio.sleep(0.15)
        assert await running.livez(client) == 200


async def test_an_answer_may_take_longer_than_a_head() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.busy_client()
        await asyncio.sleep(0.15)
        running.go_on.set()
        assert (await client.answer()).status == 200


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with served(keepalive=0.1) as running:
        client = await running.client()
        assert await running.livez(client) == 200
        assert await client.at_end()


async def test_a_head_that_grows_without_end_is_refused_long_before_its_deadline() -> None:
    async with served(head_bytes=20_000) as running:
        client = await running.client()
        await client.send(b"GET /livez HTTP/1.1\r\n" + b"".join(b"A%d: %b\r\n" % (n, b"x" * 5000) for n in range(8)))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "invalid_request")
        assert await client.at_end()


async def test_at_the_cap_the_oldest_idle_connection_goes() -> None:
    async with served(most=2) as running:
        oldest, younger = await running.client(), await running.client()
        assert await running.livez(oldest) == 200
        assert await running.livez(younger) == 200
        newest = await running.client()
        assert await running.livez(newest) == 200
        assert await oldest.at_end()
        assert await running.livez(younger) == 200
        assert running.runner.connections.evicted == 1


async def test_a_half_head_does_not_keep_a_seat() -> None:
    async with served(most=1) as running:
        half = await running.client()
        await half.send(b"GET /")
        newest = await running.client()
        assert await running.livez(newest) == 200
        assert await half.at_end()


async def test_the_silent_do_not_fill_the_reserve() -> None:
    async with served(most=1) as running:
        await running.busy_client()
        silent = [await running.client() for _ in range(RESERVE)]
        assert await running.livez(await running.client()) == 200
        assert await silent[0].at_end()


async def test_seats_come_back() -> None:
    async with served(most=1) as running:
        for _ in range(3):
            client = await running.client()
            assert await running.livez(client) == 200
            client.close()
            while len(running.runner.connections):  # noqa: ASYNC110 - the proxy rings no bell
                await asyncio.sleep(0)
        assert running.runner.connections.evicted == 0


async def test_a_closed_connection_whose_client_does_not_read_ends_all_the_same() -> None:
    """A closed transport waits for its buffer to be empty: for ever."""
    async with served(farewell_seconds=0.1) as running:
        await unread(running, b"/pushed")
        while len(running.runner.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_answer_nobody_takes_is_not_kept_for_an_idle_connection() -> None:
    async with served(farewell_seconds=0.1) as running:
        client = await running.client(receive_buffer=4096)
        await client.get(target=b"/pushed")
        while not len(running.runner.connections):  # noqa: ASYNC110 - the proxy rings no bell
            await asyncio.sleep(0)
        while len(running.runner.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_an_answer_that_is_taken_slowly_is_left_in_peace() -> None:
    """The looks at it are ours: the kernel may hand a client with a small buffer nothing for 200 ms."""
    async with served(farewell_seconds=LATER) as running:
        client = await running.client(receive_buffer=65536)
        await client.get(target=b"/pushed")
        while not (connections := running.runner.server.connections if running.runner.server else []):  # noqa: ASYNC110
            await asyncio.sleep(0)
        [connection] = connections
        assert isinstance(connection, ClientConnection)
        while connection._keepalive_handle is None:  # noqa: ASYNC110 - the proxy rings no bell
            await asyncio.sleep(0)
        transport = connection.transport
        assert transport is not None
        for _ in range(5):
            connection._keepalive_handle.cancel()
            connection._process_keepalive()
            untaken = transport.get_write_buffer_size()
            while transport.get_write_buffer_size() == untaken:
                assert await client.reader.read(65536)
        assert len(running.runner.connections) == 1


# ---- unfinished heads


HALF = b"GET /livez HTTP/1.1\r\nHost: x\r\nA: "


async def test_together_unfinished_heads_hold_no_more_than_they_may() -> None:
    """The one that began first is the least likely to be meant."""
    async with served(all_heads_bytes=3000) as running:
        slow = [await running.client() for _ in range(3)]
        for client in slow:
            await client.send(HALF + b"x" * 960)
            while not running.heads_bytes or running.heads_bytes % (len(HALF) + 960):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await slow[2].send(b"x" * 50)
        answer = await slow[0].answer()
        assert (answer.status, answer.one(b"Retry-After"), answer.one(b"Connection")) == (503, b"1", b"close")
        assert running.refusals == [ErrorCode.OVERLOADED]
        for client in slow[1:]:
            await client.send(b"\r\n\r\n")
            assert (await client.answer()).status == 200
        assert running.heads_bytes == 0


async def test_an_unfinished_head_that_leaves_counts_no_more() -> None:
    async with served() as running:
        client = await running.client()
        await client.send(HALF)
        while not running.heads_bytes:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0)
        client.close()
        while running.heads_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_head_behind_a_request_that_is_answered_is_bounded_too() -> None:
    """An answer of ours would be read as the one that is awaited."""
    async with served(head_bytes=20_000) as running:
        client = await running.busy_client()
        await client.send(HALF)
        with contextlib.suppress(ConnectionError):
            while not running.refusals:
                await client.send(b"x" * 5000 + b"\r\nB: ")
                await asyncio.sleep(0)
        assert await client.at_end()
        assert running.refusals == [ErrorCode.INVALID_REQUEST]


async def test_a_head_behind_a_request_that_is_answered_may_take_its_time() -> None:
    async with served(head_seconds=0.05) as running:
        client = await running.busy_client()
        await client.send(HALF)
        await asyncio.sleep(0.15)
        running.go_on.set()
        assert (await client.answer()).body == b"done"
        await client.send(b"x\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_a_refused_head_is_answered_though_more_of_it_follows() -> None:
    async with served(head_bytes=5000) as running:
        client = await running.client()
        for _ in range(20):
            await client.send(HALF + b"x" * 50_000)
        assert (await client.answer()).status == 400
        assert running.refusals == [ErrorCode.INVALID_REQUEST]


# ---- the end


async def ended(running: Served) -> None:
    await running.runner.cleanup()


async def test_the_end_waits_for_clients_that_still_read() -> None:
    """The answer is out when it is in our buffers, and these end with us."""
    async with served(patience=LATER) as running:
        client = await unread(running, b"/pushed")
        while not running.pushed:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0)
        end = asyncio.create_task(ended(running), name="end")
        done, _ = await asyncio.wait({end}, timeout=0.3)
        assert not done
        assert await to_the_end(client) > SIXTEEN_MIB
        await end


async def test_the_end_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """And whom it does not wait for learns that his answer is none, although nothing told its length."""
    async with served(patience=0.1) as running:
        client = await unread(running, b"/pushed")
        while not running.pushed:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0)
        await ended(running)
        with pytest.raises(ConnectionResetError):
            await to_the_end(client)
        assert [record.getMessage() for record in caplog.records] == [
            "1 clients had not taken the end of their answers"
        ]


async def test_without_anybody_the_end_comes_at_once() -> None:
    async with served(patience=LATER) as running:
        assert await running.livez(await running.client()) == 200
        await ended(running)
