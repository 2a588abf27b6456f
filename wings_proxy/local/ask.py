"""Ask a chat model one question and pass the answer on while it streams."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

_SILENCE_SECONDS: Final = 300.0

# What the default model's card recommends; the fixed seed makes a second run answer like the first.
SAMPLING: Final[Mapping[str, Any]] = {"temperature": 0.2, "top_p": 0.9, "seed": 9, "max_tokens": 80}


@dataclass(frozen=True, slots=True)
class Answer:
    """How one answer went. Times are seconds since the question was sent; `tokens` are events that carried text."""

    text: str
    tokens: int
    first_token_seconds: float | None
    seconds: float
    problem: str | None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"no complete answer: {self.problem}"
        if self.first_token_seconds is None:
            return f"an empty answer after {self.seconds:.2f} s"
        return (
            f"first token after {self.first_token_seconds:.2f} s, {self.tokens} events with text "
            f"in {self.seconds:.2f} s"
        )


class EventStream:
    """Incremental parser of server-sent events (WHATWG HTML, 9.2.6): bytes in, the `data` of each event out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._unfinished = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of every event the chunk completes."""
        text = self._unfinished + self._decode(chunk)
        # A CR at the end may be half of a CRLF: the line ends with the next chunk.
        held = "\r" if text.endswith("\r") else ""
        text = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = text.split("\n")
        self._unfinished = rest + held
        for line in lines:
            if line:
                field, _, value = line.partition(":")
                if field == "data":
                    self._data.append(value.removeprefix(" "))
            elif self._data:
                data, self._data = "\n".join(self._data), []
                yield data


async def first_model(session: aiohttp.ClientSession, url: str) -> str:
    """Return the id of the first model the server at `url` lists, empty if it lists none."""
    async with session.get(f"{url}/v1/models") as response:
        listed = await response.json(content_type=None) if response.ok else {}
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        return ""


async def ask(
    session: aiohttp.ClientSession, url: str, model: str, question: str, write: Callable[[str], None]
) -> Answer:
    """Stream one answer, each piece of text passed to `write` as it arrives. Never raises for the server's doing."""
    body = {**SAMPLING, "model": model, "messages": [{"role": "user", "content": question}], "stream": True}
    reading = _Reading(write)
    try:
        async with session.post(
            f"{url}/v1/chat/completions",
            json=body,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_SECONDS),
        ) as response:
            if response.content_type == "text/event-stream" and response.ok:
                async for chunk in response.content.iter_any():
                    reading.take(chunk)
            else:
                reading.problem = f"status {response.status}: {_error_text(await response.text())}"
    except (aiohttp.ClientError, TimeoutError) as error:
        reading.problem = str(error) or type(error).__name__
    return reading.answer()


class _Reading:
    """The answer so far."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.problem: str | None = None
        self._write = write
        self._events = EventStream()
        self._pieces: list[str] = []
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._done = False

    def take(self, chunk: bytes) -> None:
        for data in self._events.feed(chunk):
            if data == "[DONE]":
                self._done = True
            elif text := self._text(data):
                if self._first_token is None:
                    self._first_token = time.monotonic() - self._started
                self._pieces.append(text)
                self._write(text)

    def _text(self, data: str) -> str:
        """Return the text of one chunk (OpenAI `chat.completion.chunk`), or note the error it stands for."""
        try:
            event = json.loads(data)
        except ValueError:
            self.problem = f"an event is not JSON: {data[:80]!r}"
            return ""
        if "error" in event:
            self.problem = _error_text(data)
            return ""
        choices = event.get("choices") or [{}]
        return choices[0].get("delta", {}).get("content") or ""

    def answer(self) -> Answer:
        if self.problem is None and not self._done:
            self.problem = "the stream ended without [DONE]"
        seconds = time.monotonic() - self._started
        return Answer("".join(self._pieces), len(self._pieces), self._first_token, seconds, self.problem)


def _error_text(body: str) -> str:
    """Return the message of an OpenAI error body, else the beginning of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].strip()
