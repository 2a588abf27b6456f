"""The fake engine keeps its promises: each switch does what its name says, and the record tells what arrived."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fake_engine import FakeEngine, Fault, Flavour, Outcome, StartEngine

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of an answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    # What followed the head, undecoded, and whether the connection was reset.
    raw: bytes
    reset: bool

    @property
    def events(self) -> list[str]:
        return [event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request_bytes(path: str, body: object = None, *, method: str = "", headers: str = "") -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        headers += f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n"
    method = method or ("GET" if body is None else "POST")
    return f"{method} {path} HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n{headers}\r\n".encode() + payload


async def dial(engine: FakeEngine, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(data)
    return reader, writer


async def raw(engine: FakeEngine, data: bytes) -> tuple[bytes, bool]:
    """Send `data`; return all that came until the end, and whether that was an RST."""
    reader, writer = await dial(engine, data)
    came, reset = b"", False
    try:
        while part := await reader.read(65536):
            came += part
    except ConnectionResetError:
        reset = True
    writer.close()
    return came, reset


async def fetch(engine: FakeEngine, data: bytes) -> Seen:
    came, reset = await raw(engine, data)
    head, _, rest = came.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = tuple((name, value) for name, value in (line.split(": ", 1) for line in lines if ": " in line))
    chunked = ("transfer-encoding", "chunked") in [(name.lower(), value) for name, value in headers]
    return Seen(int(first.split(" ")[1]), headers, dechunk(rest) if chunked else rest, rest, reset)


def dechunk(data: bytes) -> bytes:
    """Return the bodies of the whole chunks in `data`."""
    whole = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if len(rest) < length + 2:
            break
        whole += rest[:length]
        data = rest[length + 2 :]
    return whole


def chat(text: str = "hello there", **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def test_a_stream_is_numbered_and_ends_with_done(fake_engine: StartEngine) -> None:
    engine = await fake_engine(tokens=3)
    seen = await fetch(engine, request_bytes(CHAT, chat(stream=True)))
    *frames, done = seen.events
    deltas = [json.loads(frame)["choices"][0]["delta"] for frame in frames]
    assert [delta["content"] for delta in deltas] == ["", "0 ", "1 ", "2 "]
    assert done == "[DONE]"


async def test_a_chinese_prompt_is_answered_in_chinese(fake_engine: StartEngine) -> None:
    engine = await fake_engine(tokens=2)
    seen = await fetch(engine, request_bytes(CHAT, chat("你好")))
    assert seen.json["choices"][0]["message"]["content"] == "第0个第1个"


@pytest.mark.parametrize("flavour", list(Flavour))
async def test_a_start_refuses_then_answers_503_then_200(fake_engine: StartEngine, flavour: Flavour) -> None:
    engine = await fake_engine(flavour=flavour, boot_seconds=0.05, loading_seconds=math.inf)
    with pytest.raises(ConnectionRefusedError):
        await dial(engine, b"")
    await engine.until(lambda: engine.listening)
    assert (await fetch(engine, request_bytes("/health"))).status == 503
    await engine.finish_loading()
    assert (await fetch(engine, request_bytes("/health"))).status == 200


async def test_a_client_that_leaves_ends_its_generation(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=math.inf)
    reader, writer = await dial(engine, request_bytes(CHAT, chat(stream=True)))
    await engine.until(lambda: engine.running == 1)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await engine.until(lambda: engine.running == 0)
    assert engine.requests[0].outcome is Outcome.LEFT
    assert engine.peers[0].closed_by_peer


@pytest.mark.parametrize(
    ("fault", "tail", "reset"),
    [
        (Fault.FIN, b"\r\n", False),
        (Fault.IN_CHUNK, b'"chatcmpl-', False),
        (Fault.BAD_CHUNK, b"zz\r\ndata: {}\n\n\r\n", False),
        (Fault.RST, None, True),
    ],
)
async def test_a_stream_dies_after_so_many_events(
    fake_engine: StartEngine, fault: Fault, tail: bytes | None, reset: bool
) -> None:
    engine = await fake_engine(fault=fault, fault_after=2)
    came, was_reset = await raw(engine, request_bytes(CHAT, chat(stream=True)))
    assert was_reset is reset
    assert b"[DONE]" not in came
    if tail is not None:
        assert came.endswith(tail)
        assert came.count(b'"content":') == 3
    assert engine.requests[0].events == 2
    assert engine.requests[0].outcome is Outcome.FAULT


async def test_sigterm_aborts_streams_as_vllm_does(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=math.inf)
    stream = asyncio.ensure_future(fetch(engine, request_bytes(CHAT, chat(stream=True))))
    await engine.until(lambda: engine.running == 1)
    await engine.terminate()
    *_, last, done = (await stream).events
    assert json.loads(last)["choices"][0]["finish_reason"] == "abort"
    assert done == "[DONE]"
    assert engine.exit_code == 0
    with pytest.raises(ConnectionRefusedError):
        await dial(engine, b"")


async def test_sigterm_drains_as_sglang_does(fake_engine: StartEngine) -> None:
    engine = await fake_engine(flavour=Flavour.SGLANG, tokens=5, token_seconds=0.02)
    stream = asyncio.ensure_future(fetch(engine, request_bytes(CHAT, chat(stream=True))))
    await engine.until(lambda: engine.running == 1)
    end = asyncio.ensure_future(engine.terminate())
    await engine.until(lambda: engine.stopping)
    assert (await fetch(engine, request_bytes("/health"))).status == 503
    assert (await stream).events[-1] == "[DONE]"
    await end
    assert engine.exit_code == 0
