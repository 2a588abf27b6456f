"""What the three engines have in common: an answer, a generation, and what a dialect must know of both."""

from __future__ import annotations

import abc
import email.utils
import http
import json
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.fake.counters import Counters
from tests.fake.settings import FakeSettings
from tests.fake.wire import Request

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")

Body = dict[str, Any]

# What vLLM answers once its core process is gone.
CORE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `headers` go where the engine puts its extra ones, `early` ones before the length."""

    status: int
    body: bytes = b""
    content_type: str | None = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    early: tuple[tuple[str, str], ...] = ()
    vary: bool = True
    chunked: bool = False
    # HEAD /metrics of vLLM tells no length.
    length: bool = True


@dataclass(slots=True, eq=False)
class Generation:
    """A request that makes tokens; its pieces are numbered, so that a reader can count and order them."""

    path: str
    model: str
    stream: bool
    prompt_tokens: int
    tokens: int
    chinese: bool = False
    choices: int = 1
    usage: bool = False
    usage_always: bool = False
    finish: str = "length"
    stop_reason: int | None = None
    logprobs: int | None = None
    tool: str | None = None
    ident: str = field(default_factory=lambda: secrets.token_hex(8))
    created: int = field(default_factory=lambda: int(time.time()))
    made: int = 0

    @property
    def chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    def piece(self, index: int) -> str:
        """Return the text of token `index`: "0 ", "1 ", … or, to a Chinese prompt, "第0个", "第1个", …"""
        if self.tool is not None:
            last = index == self.tokens - 1
            return _ARGUMENTS[index:] if last else _ARGUMENTS[index : index + 1]
        return f"第{index}个" if self.chinese else f"{index} "

    @property
    def text(self) -> str:
        return "".join(self.piece(index) for index in range(self.made))


def compact(value: object) -> bytes:
    """JSON as the engines write it: no spaces, UTF-8 unescaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sse(value: object) -> bytes:
    return b"data: " + compact(value) + b"\n\n"


# What a tool is called with, one character a token.
_ARGUMENTS = '{"city": "Paris"}'
DONE = b"data: [DONE]\n\n"


def prompt_text(body: Body) -> str:
    """Return all text of a chat's messages, of a prompt or of an input."""
    parts: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            walk(value.get("content", value.get("text")))

    walk(body.get("messages", body.get("prompt", body.get("input", body.get("text")))))
    return " ".join(parts)


def count_tokens(text: str) -> int:
    """A token for each word and for each Chinese character."""
    return len(_WORD.findall(text))


def is_chinese(text: str) -> bool:
    return _CHINESE.search(text) is not None


class Dialect(abc.ABC):
    """One engine's way to answer; pure: it reads the settings and a view of the engine, and makes bytes."""

    # True: `opening` holds the first token already.
    opens_with_token = False
    health_paths: frozenset[str]

    def __init__(self, settings: FakeSettings, counters: Counters) -> None:
        self.settings = settings
        self.counters = counters

    @property
    def names(self) -> tuple[str, ...]:
        return self.settings.served_names or (self.settings.model,)

    def has_key(self, request: Request) -> bool:
        """Tell whether the request carries the engine's key, if it has one."""
        key = self.settings.api_key
        return not key or request.header("authorization") == f"Bearer {key}"

    @abc.abstractmethod
    def head(self, answer: Answer, request: Request) -> bytes:
        """Return status line and headers, in the engine's order."""

    @abc.abstractmethod
    def answer(self, request: Request) -> Answer | Generation:
        """Return the answer to a request whose body is read, or the generation it asks for."""

    @abc.abstractmethod
    def health(self, status: int) -> Answer: ...

    @abc.abstractmethod
    def loading(self) -> Answer:
        """Return what every path answers while the port is open and the model not yet loaded."""

    @abc.abstractmethod
    def stream_head(self, request: Request) -> bytes: ...

    @abc.abstractmethod
    def opening(self, generation: Generation) -> Iterable[bytes]:
        """Yield the events before the first token, one HTTP chunk each."""

    @abc.abstractmethod
    def event(self, generation: Generation, choice: int, text: str) -> bytes:
        """Return the event of a token."""

    @abc.abstractmethod
    def closing(self, generation: Generation, text: str, finish: str) -> Iterable[bytes]:
        """Yield the events that end a stream, the last token (`text`, may be empty) and [DONE] among them."""

    @abc.abstractmethod
    def whole(self, generation: Generation, finish: str) -> Answer: ...

    @abc.abstractmethod
    def error(self, status: int, message: str) -> Answer:
        """Return an error in the engine's shape."""

    def error_event(self) -> bytes:
        """Return the event of an engine whose core died in the middle of a stream (vLLM 0.32.0; others have none)."""
        error = {"error": {"message": CORE_DIED, "type": "InternalServerError", "param": None, "code": 500}}
        return b"data: " + json.dumps(error).encode() + b"\n\n"


def status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()


def header_block(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return status_line(status) + lines.encode("latin-1") + b"\r\n"


def http_date() -> str:
    return email.utils.formatdate(usegmt=True)


def wants_close(request: Request) -> bool:
    """Tell whether the answer ends the connection: asked for, or HTTP/1.0."""
    return request.version == "HTTP/1.0" or (request.header("connection") or "").lower() == "close"
