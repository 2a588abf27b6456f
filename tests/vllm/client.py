"""A client that streams from vLLM and sees how each answer ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.vllm.running import MODEL

CHAT = "/v1/chat/completions"


def asked(tokens: int, **more: object) -> dict[str, object]:
    """Return the body of a chat whose answer has exactly so many tokens."""
    return {
        "model": str(MODEL),
        "messages": [{"role": "user", "content": "请数数 count"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


@dataclass
class Answer:
    """A streamed answer as its client sees it."""

    events: int = 0
    finish: str | None = None
    completion_tokens: int | None = None
    done: bool = False
    # The error event, and how the connection broke.
    error: dict[str, Any] | None = None
    broken: str = ""

    def whole(self, tokens: int) -> bool:
        return (self.finish, self.completion_tokens, self.done, self.error, self.broken) == (
            "length",
            tokens,
            True,
            None,
            "",
        )


async def read(response: aiohttp.ClientResponse, answer: Answer) -> Answer:
    """Read a stream to its end, whatever that is."""
    try:
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            answer.events += 1
            if (data := line[6:].strip()) == b"[DONE]":
                answer.done = True
                continue
            event = json.loads(data)
            if "error" in event:
                answer.error = event["error"]
                continue
            if event.get("usage"):
                answer.completion_tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                answer.finish = choice["finish_reason"] or answer.finish
    except aiohttp.ClientError as error:
        answer.broken = type(error).__name__
    return answer


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=300)
    ) as session:
        yield session


@asynccontextmanager
async def streams(session: aiohttp.ClientSession, url: str, count: int, tokens: int) -> AsyncIterator[Sequence[Answer]]:
    """Open so many streams; the block begins when each has said something, and ends when they have ended."""
    answers = [Answer() for _ in range(count)]
    spoken = asyncio.Barrier(count + 1)

    async def one(answer: Answer) -> None:
        async with session.post(url + CHAT, json=asked(tokens)) as response:
            assert response.status == 200, await response.text()
            await response.content.readline()
            await spoken.wait()
            await read(response, answer)

    async with asyncio.TaskGroup() as group:
        for number, answer in enumerate(answers):
            group.create_task(one(answer), name=f"stream {number}")
        await spoken.wait()
        yield answers
