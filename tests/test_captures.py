"""The fake engine answers as the real ones did: each captured request of vLLM, replayed, and most of the others'.

Compared are the status, the header names in their order (and the values that do not vary), the body of an error word by
word, the shape of any other document, and of a stream the framing and the sequence of event shapes.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fake.client import End, Reply, exchange, parse, request, split_chunks
from tests.fake.faults import chunk
from tests.fake_engine import FakeEngine, Flavour, StartEngine, Stop

CAPTURES = Path(__file__).parent / "data"
DATA = CAPTURES / "vllm-0.32.0"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello! How are you?"}]
CHINESE = [{"role": "user", "content": "你好，请自我介绍一下"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
JSON = ("content-type", "application/json")

CHUNKED = chunk(b'{"messages":') + chunk(b'[{"role": "user", "content": "hi"}]}') + b"0\r\n\r\n"

# The second server of the captures: with a key, a tool parser, request ids, its own names.
KEYED: Mapping[str, object] = {
    "api_key": "right",
    "served_names": ("tiny", "tiny-alias"),
    "request_id_headers": True,
    "tool_parser": True,
    "load_tracking": True,
    "dev_mode": True,
}
KEY = ("authorization", "Bearer right")


def chat(*headers: tuple[str, str], **fields: object) -> bytes:
    return request(CHAT, {"messages": MESSAGES, "max_tokens": 4, **fields}, *headers)


def stream(**fields: object) -> bytes:
    return chat(stream=True, **fields)


REQUESTS: Mapping[str, bytes] = {
    "anthropic_messages": request("/v1/messages", {"messages": MESSAGES, "max_tokens": 8}),
    "chat_n2_stream": stream(n=2),
    "chat_nonstream": chat(),
    "chat_nonstream_logprobs": chat(logprobs=True, top_logprobs=2),
    "chat_nonstream_zh": chat(messages=CHINESE),
    "chat_request_id": chat(("x-request-id", "my-req-123")),
    "chat_stop_eos": stream(max_tokens=300),
    "chat_stream": stream(),
    "chat_stream_stop_reason": stream(stop_token_ids=[561]),
    "chat_stream_usage": stream(stream_options={"include_usage": True}),
    "chat_stream_usage_continuous": stream(stream_options={"include_usage": True, "continuous_usage_stats": True}),
    "chat_stream_zh": stream(messages=CHINESE, stream_options={"include_usage": True}),
    "chunked_upload": request(CHAT, CHUNKED, JSON, ("transfer-encoding", "chunked")),
    "completions_nonstream": request("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 4}),
    "completions_stream": request(
        "/v1/completions",
        {"prompt": "The capital", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "embeddings": request("/v1/embeddings", {"input": "hello"}),
    "err_bad_json": request(CHAT, b'{"model": "m", "messages": [}', JSON),
    "err_delete_method": request(CHAT, method="DELETE"),
    "err_empty_body": request(CHAT, b"", JSON),
    "err_empty_messages": chat(messages=[]),
    "err_max_tokens_too_big": chat(max_tokens=9000),
    "err_missing_messages": request(CHAT, {"model": "/models/tiny-qwen2"}),
    "err_negative_max_tokens": chat(max_tokens=-1),
    "err_no_content_type": request(CHAT, json.dumps({"messages": MESSAGES}).encode()),
    "err_not_json_type": request(CHAT, b"hello", JSON),
    "err_temperature": chat(temperature=-3),
    "err_text_plain": request(CHAT, b"hello", ("content-type", "text/plain")),
    "err_too_long_prompt": chat(messages=[{"role": "user", "content": "hello " * 9000}]),
    "err_too_long_stream": stream(messages=[{"role": "user", "content": "hello " * 9000}]),
    "err_unknown_model": chat(model="nope"),
    "err_unknown_model_stream": stream(model="nope"),
    "err_unknown_post_path": request("/v1/nope", {}),
    "err_wrong_type": chat(max_tokens="many"),
    "get_docs": request("/docs"),
    "get_health": request("/health"),
    "get_load": request("/load"),
    "get_metrics_after": request("/metrics"),
    "get_metrics_before": request("/metrics"),
    "get_openapi": request("/openapi.json"),
    "get_ping": request("/ping"),
    "get_root": request("/"),
    "get_server_info": request("/server_info"),
    "get_unknown_path": request("/v1/nope"),
    "get_v1_chat_get": request(CHAT),
    "get_v1_models": request("/v1/models"),
    "get_version": request("/version"),
    "gzip_accept": request("/v1/models", None, ("accept-encoding", "gzip")),
    "head_health": request("/health", method="HEAD"),
    "head_metrics": request("/metrics", method="HEAD"),
    "health_trailing_slash": request("/health/"),
    "http10_chat": request(CHAT, {"messages": MESSAGES, "stream": True, "max_tokens": 3}, version="HTTP/1.0"),
    "model_omitted": chat(),
    "options_chat": request(CHAT, method="OPTIONS"),
    "options_chat_cors": request(
        CHAT,
        None,
        ("origin", "http://elsewhere"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
        method="OPTIONS",
    ),
    "responses": request("/v1/responses", {"input": "hello", "max_output_tokens": 16}),
    "tokenize": request("/tokenize", {"prompt": "Hello! How are you?"}),
    "tools_auto_unset": chat(tools=[TOOL]),
    "unknown_field": chat(no_such_field=1),
}

KEYED_REQUESTS: Mapping[str, bytes] = {
    "alias_model": chat(KEY, model="tiny-alias"),
    "apikey_nokey_chat": chat(),
    "apikey_nokey_docs": request("/docs"),
    "apikey_nokey_health": request("/health"),
    "apikey_nokey_is_sleeping": request("/is_sleeping"),
    "apikey_nokey_load": request("/load"),
    "apikey_nokey_metrics": request("/metrics"),
    "apikey_nokey_ping": request("/ping"),
    "apikey_nokey_tokenize": request("/tokenize"),
    "apikey_nokey_v1_models": request("/v1/models"),
    "apikey_nokey_version": request("/version"),
    "apikey_ok_models": request("/v1/models", None, KEY),
    "apikey_wrongkey_models": request("/v1/models", None, ("authorization", "Bearer wrong")),
    "devmode_server_info": request("/server_info"),
    "json_schema": chat(KEY, response_format={"type": "json_schema", "json_schema": {"name": "ok", "schema": {}}}),
    "request_id_headers": chat(KEY, ("x-request-id", "my-req-456")),
    "tools_auto": chat(KEY, tools=[TOOL], tool_choice="auto"),
    "tools_named": chat(KEY, tools=[TOOL], tool_choice=NAMED),
    "tools_named_stream": chat(KEY, tools=[TOOL], tool_choice=NAMED, stream=True),
    "tools_required": chat(KEY, tools=[TOOL], tool_choice="required"),
}

DEAD_REQUESTS: Mapping[str, bytes] = {
    "dead_chat": chat(),
    "dead_health": request("/health"),
    "dead_metrics": request("/metrics"),
    "dead_models": request("/v1/models"),
}

# Streams whose end was captured, by what ends them; each has a test of its own below, like the two that need company.
ENDINGS = (
    "sigterm_stream_tail",
    "sigterm_drain_stream_tail",
    "kill9_enginecore_stream_tail",
    "kill9_worker_stream_tail",
)
IN_COMPANY = ("during_drain_chat", "load_one_running")

# The length of a document that the fake keeps short, and pages of which only the head is compared.
HEAD_ONLY = {"get_docs", "apikey_nokey_docs", "get_openapi", "devmode_server_info"}
VARYING = {"date", "content-length", "x-request-id"}


def captured(name: str, directory: Path = DATA) -> Reply:
    reply = parse((directory / f"{name}.http").read_bytes(), head_only=name.startswith("head_"))
    assert reply is not None
    return reply


def shape(value: Any) -> Any:
    """Return a document with its keys in order, and in place of each value its kind."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def event_shapes(reply: Reply) -> list[Any]:
    """Return the shapes of a stream's events, neighbours that are alike told once."""
    assert reply.chunks is not None
    shapes: list[Any] = []
    for event in reply.chunks:
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        data = event[6:-2]
        new = "[DONE]" if data == b"[DONE]" else shape(json.loads(data))
        if not shapes or shapes[-1] != new:
            shapes.append(new)
    return shapes


def assert_alike(name: str, ours: Reply, theirs: Reply) -> None:
    assert ours.status == theirs.status
    assert [header for header, _ in ours.headers] == [header for header, _ in theirs.headers]
    assert {pair for pair in ours.headers if pair[0] not in VARYING} == {
        pair for pair in theirs.headers if pair[0] not in VARYING
    }
    if name in HEAD_ONLY:
        return
    assert (ours.chunks is None) == (theirs.chunks is None)
    kind = theirs.header("content-type") or ""
    if theirs.chunks is not None:
        assert event_shapes(ours) == event_shapes(theirs)
    elif kind.startswith("application/json") and theirs.status == 200:
        assert shape(ours.json) == shape(theirs.json)
    elif kind.startswith("text/plain; version"):
        assert set(samples(ours)) <= set(samples(theirs))
    else:
        assert ours.body == theirs.body


def samples(reply: Reply) -> list[tuple[str, str]]:
    """Return name and label names of each sample of an exposition, families of the engine only."""
    lines = [line for line in reply.body.decode().splitlines() if line.startswith("vllm:")]
    return [(line.partition("{")[0], ",".join(part.partition("=")[0] for part in line.split(","))) for line in lines]


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_plain_server_answers_as_captured(fake_engine: StartEngine, name: str) -> None:
    engine = await fake_engine()
    assert_alike(name, await exchange(engine.port, REQUESTS[name]), captured(name))


@pytest.mark.parametrize("name", KEYED_REQUESTS)
async def test_a_server_with_a_key_answers_as_captured(fake_engine: StartEngine, name: str) -> None:
    engine = await fake_engine(**KEYED)
    assert_alike(name, await exchange(engine.port, KEYED_REQUESTS[name]), captured(name))


@pytest.mark.parametrize("name", DEAD_REQUESTS)
async def test_a_server_whose_core_died_answers_as_captured(fake_engine: StartEngine, name: str) -> None:
    engine = await fake_engine()
    await engine.kill_core()
    assert_alike(name, await exchange(engine.port, DEAD_REQUESTS[name]), captured(name))


async def streaming(engine: FakeEngine) -> asyncio.Task[Reply]:
    """Start a stream, and return when it has had some tokens."""
    task = asyncio.create_task(exchange(engine.port, stream(max_tokens=20)))
    await engine.until(lambda: engine.requests and engine.requests[0].events >= 3)
    return task


def tail(name: str) -> list[Any]:
    """Return the event shapes of the end of a stream, of which no head was captured."""
    raw = (DATA / f"{name}.http").read_bytes()
    chunks, whole = split_chunks(raw)
    assert whole
    return event_shapes(Reply(200, (), b"", chunks, raw, End.FRAMED))


async def test_a_stream_aborted_by_sigterm_ends_as_captured(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=0.005)
    reply = await streaming(engine)
    await engine.terminate()
    _role, *rest = event_shapes(await reply)
    assert rest == tail("sigterm_stream_tail")


async def test_a_stream_drained_after_sigterm_ends_as_captured(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=0.005, stop=Stop.DRAIN_REFUSING)
    reply = await streaming(engine)
    await engine.terminate()
    _role, *rest = event_shapes(await reply)
    assert rest == tail("sigterm_drain_stream_tail")


async def test_a_request_during_the_drain_is_refused_as_captured(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=0.005, stop=Stop.DRAIN_REFUSING)
    running = await streaming(engine)
    end = asyncio.create_task(engine.terminate())
    await engine.until(lambda: engine.stopping)
    assert_alike("during_drain_chat", await exchange(engine.port, chat()), captured("during_drain_chat"))
    await asyncio.gather(running, end)


async def test_a_stream_whose_core_is_killed_ends_as_captured(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=0.005)
    reply = await streaming(engine)
    await engine.kill_core()
    assert event_shapes(await reply) == tail("kill9_enginecore_stream_tail")
    assert (await reply).raw.endswith((DATA / "kill9_worker_stream_tail.http").read_bytes())


async def test_the_load_is_told_as_captured(fake_engine: StartEngine) -> None:
    engine = await fake_engine(**KEYED, token_seconds=math.inf)
    reply = asyncio.create_task(exchange(engine.port, chat(KEY, stream=True)))
    await engine.until(lambda: engine.running == 1)
    answer = await exchange(engine.port, request("/load"))
    assert_alike("load_one_running", answer, captured("load_one_running"))
    assert answer.json == {"server_load": 1}
    await engine.kill_core()
    await reply


# The other engines: what a client meets every day.

LONG = "hello " * 9000
USAGE = {"include_usage": True}
SGLANG_REQUESTS: Mapping[str, bytes] = {
    "chat_nonstream": chat(),
    "chat_stream": stream(),
    "chat_stream_usage": stream(stream_options=USAGE),
    "chat_stream_zh": stream(messages=CHINESE),
    "completions_stream": request("/v1/completions", {"prompt": "x", "max_tokens": 4, "stream": True}),
    "err_bad_json": request(CHAT, b"{bad", JSON),
    "err_empty": request(CHAT, b"", JSON),
    "err_missing_messages": request(CHAT, {"model": "/models/tiny-qwen2"}),
    "err_wrong_type": chat(max_tokens="many"),
    "err_too_long": chat(messages=[{"role": "user", "content": LONG}]),
    "err_too_long_stream": stream(messages=[{"role": "user", "content": LONG}]),
    "err_text_plain": request(CHAT, b"hello", ("content-type", "text/plain")),
    "err_unknown_model": chat(model="nope"),
    "err_unknown_path": request("/v1/nope", {}),
    "get_health": request("/health"),
    "get_health_generate": request("/health_generate"),
    "get_load": request("/load"),
    "get_nope": request("/nope"),
    "get_ping": request("/ping"),
    "get_ready": request("/ready"),
    "get_root": request("/"),
    "get_v1_chat": request(CHAT),
    "get_v1_models": request("/v1/models"),
    "get_version": request("/version"),
    "head_health": request("/health", method="HEAD"),
    "options_chat": request(CHAT, method="OPTIONS"),
}
LLAMACPP_REQUESTS: Mapping[str, bytes] = {
    "chat_stream_usage": stream(stream_options=USAGE),
    "chat_stream_zh": stream(messages=CHINESE),
    "embeddings": request("/v1/embeddings", {"input": "hello"}),
    "err_bad_json": request(CHAT, b"{bad", JSON),
    "err_empty": request(CHAT, b"", JSON),
    "err_missing_messages": request(CHAT, {}),
    "err_too_long": chat(messages=[{"role": "user", "content": LONG}]),
    "get_chat": request(CHAT),
    "get_health": request("/health"),
    "get_load": request("/load"),
    "get_nope": request("/nope"),
    "get_ping": request("/ping"),
    "get_v1_health": request("/v1/health"),
    "get_version": request("/version"),
}
# Their messages name numbers of tokens, files of the server, or the words of another JSON parser.
WORDED = {"err_too_long", "err_too_long_stream", "err_bad_json", "err_empty", "err_missing_messages", "err_wrong_type"}


@pytest.mark.parametrize("name", SGLANG_REQUESTS)
async def test_sglang_answers_as_captured(fake_engine: StartEngine, name: str) -> None:
    engine = await fake_engine(flavour=Flavour.SGLANG)
    ours, theirs = await exchange(engine.port, SGLANG_REQUESTS[name]), captured(name, CAPTURES / "sglang-0.5.23")
    if name in WORDED:
        assert (ours.status, shape(ours.json)) == (theirs.status, shape(theirs.json))
        return
    if theirs.chunks is None and theirs.status == 200 and theirs.body.startswith(b"{"):
        # The fake tells no weight versions.
        assert ours.json.keys() == theirs.json.keys()
        assert [header for header, _ in ours.headers] == [header for header, _ in theirs.headers]
        return
    assert_alike(name, ours, theirs)


@pytest.mark.parametrize("name", LLAMACPP_REQUESTS)
async def test_llamacpp_answers_as_captured(fake_engine: StartEngine, name: str) -> None:
    engine = await fake_engine(flavour=Flavour.LLAMACPP)
    ours, theirs = await exchange(engine.port, LLAMACPP_REQUESTS[name]), captured(name, CAPTURES / "llamacpp-b11549")
    assert ours.status == theirs.status
    assert [header for header, _ in ours.headers] == [header for header, _ in theirs.headers]
    if theirs.chunks is None:
        assert shape(ours.json) == shape(theirs.json)
        return
    assert ours.chunks is not None
    # Several events in one chunk, at the same places.
    events = [[each.count(b"data: ") for each in chunks] for chunks in (ours.chunks, theirs.chunks)]
    assert events[0][0] == events[1][0] == 2
    assert events[0][-2:] == events[1][-2:]


@pytest.mark.parametrize(
    ("flavour", "log", "model"),
    [
        (Flavour.VLLM, "vllm-0.32.0/start_serve_stop.log", "/models/tiny-qwen2"),
        (Flavour.SGLANG, "sglang-0.5.23/start_serve_drain.log", "/models/tiny-qwen2"),
        (Flavour.LLAMACPP, "llamacpp-b11549/start_serve.log", "/models/gemma-3-270m-q4_k_m.gguf"),
    ],
)
async def test_the_log_has_only_lines_the_engine_has(
    fake_engine: StartEngine, flavour: Flavour, log: str, model: str
) -> None:
    engine = await fake_engine(flavour=flavour, model=model, stats_seconds=0.01, device="CPU", token_seconds=0.01)
    # Long enough for a statistics line while it runs.
    await exchange(engine.port, stream(max_tokens=5))
    await engine.terminate()
    assert outlines(engine.printed) <= outlines((CAPTURES / log).read_text())


def outlines(text: str) -> set[str]:
    """Return how the lines of a log begin, every number 0, paths of modules and runs of spaces shortened."""
    lines = text.replace("\r", "\n").split("\n")
    return {re.sub(r" +", " ", re.sub(r"\d+", "0", re.sub(r"\S*/api_server.py\S* ", "", line)))[:52] for line in lines}


def test_no_capture_is_left_out() -> None:
    told = {*REQUESTS, *KEYED_REQUESTS, *DEAD_REQUESTS, *ENDINGS, *IN_COMPANY}
    assert told == {path.stem for path in DATA.glob("*.http")}
