"""A client that counts: every token of a stream is numbered, so what is missing shows, whatever the end looks like."""

from __future__ import annotations

import asyncio
import enum
import json
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"


class Verdict(enum.StrEnum):
    """What became of one request."""

    WHOLE = "whole"  # every event in order, the right finish reason, [DONE], and a clean end
    REFUSED = "refused"  # nobody listens, or 503: another instance may take it, nothing was begun
    TRUNCATED = "truncated"  # begun, and less than everything
    FAILED = "failed"  # any other status, or an error event


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict, how many events came, and what was wrong."""

    verdict: Verdict
    events: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Numbering:
    """How an engine numbers the tokens of an answer, from 0: what makes it, and which numbers an event carries."""

    asked: Mapping[str, object]
    numbers: Callable[[dict[str, Any]], Iterable[int]]


def _said(event: dict[str, Any]) -> Iterable[int]:
    return [int(word) for choice in event["choices"] for word in choice["delta"].get("content", "").split()]


# The fake engine's text is its tokens' numbers.
FAKE = Numbering(asked={}, numbers=_said)


async def to_the_end(
    port: int,
    body: Mapping[str, Any],
    first: asyncio.Event | None = None,
    *,
    held_until: asyncio.Event | None = None,
) -> tuple[bytes, bool]:
    """Stream a chat; return all that came, and whether it ended as HTTP says that a body ends.

    For what comes last before a cut: aiohttp's client forgets what nobody has taken yet when the end comes with it.
    `first` is set when something has come. Nothing is read before *held_until* is set, and little fits the kernel.
    """
    content, received = json.dumps(body).encode(), bytearray()
    sock = socket.socket()
    sock.setblocking(False)
    if held_until is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(content), content)
        )
        if held_until is not None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await held_until.wait()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            received += await reader.readexactly(size)
            await reader.readexactly(2)
            if first is not None:
                first.set()
        await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionError):
        return bytes(received), False
    finally:
        writer.close()
    return bytes(received), True


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    tokens: int,
    numbering: Numbering = FAKE,
    *,
    first: asyncio.Event | None = None,
) -> Answer:
    """Ask for a stream of `tokens` numbered tokens; judge what comes. `first` is set by the first of them."""
    body = {"messages": [{"role": "user", "content": "count"}], "stream": True, "max_tokens": tokens, **numbering.asked}
    seen: list[int] = []
    finish, done, begun = None, False, False
    try:
        async with session.post(url + CHAT, json=body) as response:
            if response.status != 200:
                text = (await response.read()).decode(errors="replace")[:200]
                verdict = Verdict.REFUSED if response.status == 503 else Verdict.FAILED
                return Answer(verdict, detail=f"{response.status} {text}")
            begun = True
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                data = line[6:].strip()
                if data == b"[DONE]":
                    done = True
                    continue
                event = json.loads(data)
                if "error" in event:
                    return Answer(Verdict.FAILED, len(seen), str(event["error"])[:200])
                for choice in event["choices"]:
                    finish = choice.get("finish_reason") or finish
                seen += numbering.numbers(event)
                if first is not None and seen:
                    first.set()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        refused = isinstance(error, aiohttp.ClientConnectorError) and not begun
        verdict = Verdict.REFUSED if refused else Verdict.TRUNCATED
        return Answer(verdict, len(seen), f"{type(error).__name__}: {error}")
    if seen == list(range(tokens)) and finish == "length" and done:
        return Answer(Verdict.WHOLE, len(seen))
    return Answer(Verdict.TRUNCATED, len(seen), f"finish {finish}, done {done}, last {seen[-1:]}")
