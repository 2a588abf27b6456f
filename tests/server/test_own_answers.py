"""What aiohttp's task answers: within bounds, in our words, and nothing of what was not HTTP is kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json

import pytest
from aiohttp.http_exceptions import HttpProcessingError

from tests.server.served import REQUEST, served, to_the_end, unread
from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.server import own_answers


async def test_an_answer_of_our_own_that_nobody_reads_is_given_up() -> None:
    async with served(farewell_seconds=0.1) as running:
        await unread(running, b"/large")
        while len(running.runner.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_probe_is_answered_when_everybody_else_is_refused() -> None:
    async with served(most=2) as running:
        busy = [await running.busy_client() for _ in range(2)]
        stranger = await running.client()
        await stranger.get(target=b"/waits")
        refused = await stranger.answer()
        assert (refused.status, refused.one(b"Retry-After"), refused.one(b"Connection")) == (503, b"1", b"close")
        assert json.loads(refused.body)["error"]["code"] == "overloaded"
        assert running.refusals == [ErrorCode.OVERLOADED]
        assert await running.livez(await running.client()) == 200
        running.go_on.set()
        assert [(await client.answer()).status for client in busy] == [200, 200]


async def _kept_of(sent: bytes) -> list[str]:
    """Send it, and more, to a fresh server; return what is kept of the parser's errors while nothing is collected."""
    gc.collect()
    gc.disable()
    try:
        async with served() as server:
            for _ in range(5):
                client = await server.client()
                with contextlib.suppress(ConnectionError):
                    for _ in range(20):
                        await client.send(sent + bytes(50_000))
                        await asyncio.sleep(0)
                    await client.reader.read()
                client.close()
            while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
                await asyncio.sleep(0.01)
            return [str(error) for error in gc.get_objects() if isinstance(error, HttpProcessingError)]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "sent", [b"BAD\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", REQUEST[:-2] + b"Content-Length: x\r\n\r\n"]
)
async def test_what_is_not_http_is_not_kept_as_garbage(sent: bytes) -> None:
    """A parser's error quotes a piece of up to 256 KiB twice: strangers could fill the memory with it."""
    assert await _kept_of(sent) == []


async def test_behind_what_is_not_http_nothing_is_parsed() -> None:
    async with served() as server:
        client = await server.client()
        while not server.runner.connections:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0)
        [connection] = server.runner.connections._all
        for _ in range(5):
            connection.data_received(b"BAD\r\n\r\n")
        assert len(connection._messages) == 1
        assert (await client.answer()).status == 400
        assert server.refusals == [ErrorCode.INVALID_REQUEST]


async def test_a_client_that_leaves_inside_a_body_nobody_wanted_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """aiohttp reads it over, and finds the connection gone."""
    gone = RuntimeError("Connection closed.")
    async with served() as server:
        client = await server.client()
        assert await server.livez(client) == 200
        [connection] = server.runner.connections._all
        connection.log_exception("Unhandled exception", exc_info=gone)
        assert len(caplog.records) == 1
        client.close()
        while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)
        connection.log_exception("Unhandled exception", exc_info=gone)
        assert len(caplog.records) == 1
        connection.log_exception("Unhandled exception", exc_info=ValueError("of ours"))
        assert len(caplog.records) == 2


async def test_a_refusal_is_not_lost_behind_what_follows_it() -> None:
    """Closed over bytes that nobody read, the connection would be reset, and the answer with it."""
    async with served() as server:
        client = await server.client()
        await client.send(b"BAD\r\n\r\n")
        for _ in range(20):
            await client.send(bytes(50_000))
        assert (await client.answer()).status == 400
        assert await client.at_end()
        assert len(server.runner.connections) == 1  # read over, until the client closes
        client.close()
        while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0)


async def test_who_goes_on_behind_a_refusal_is_not_listened_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_answers, "LINGER_SECONDS", 0.05)
    async with served() as server:
        client = await server.client()
        await client.send(b"BAD\r\n\r\n")
        assert (await client.answer()).status == 400
        while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)


async def test_who_was_refused_does_not_keep_a_seat() -> None:
    async with served(most=1) as server:
        refused = await server.client()
        await refused.send(b"BAD\r\n\r\n")
        assert (await refused.answer()).status == 400
        assert await server.livez(await server.client()) == 200


async def test_an_answer_that_is_given_up_ends_with_a_reset() -> None:
    """A clean end would say that it is whole, to a client of HTTP/1.0 and where no length is told."""
    async with served(farewell_seconds=0.1) as server:
        client = await unread(server, b"/large")
        while len(server.runner.connections):  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionResetError):
            await to_the_end(client)
