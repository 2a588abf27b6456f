"""The fake engine keeps its promises: each switch does what its name says, and the record tells what arrived."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.fake.client import End, Reply, exchange, request
from tests.fake.program import settings_from
from tests.fake_engine import (
    FakeEngine,
    FakeSettings,
    Fault,
    Flavour,
    Foreign,
    Health,
    Metrics,
    Outcome,
    StartEngine,
    Stop,
    write_shims,
)

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parent.parent


def chat(text: str = "hello there", **fields: object) -> bytes:
    return request(CHAT, {"messages": [{"role": "user", "content": text}], **fields})


STREAM = chat(stream=True)
HEALTH = request("/health")


async def refused(engine: FakeEngine) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


# Generation.


async def test_a_stream_is_numbered_and_ends_with_done(fake_engine: StartEngine) -> None:
    engine = await fake_engine(tokens=3)
    *frames, done = (await exchange(engine.port, STREAM)).events
    assert [json.loads(frame)["choices"][0]["delta"]["content"] for frame in frames] == ["", "0 ", "1 ", "2 "]
    assert done == "[DONE]"


@pytest.mark.parametrize("flavour", list(Flavour))
async def test_every_flavour_streams_the_text_it_answers_whole(fake_engine: StartEngine, flavour: Flavour) -> None:
    engine = await fake_engine(flavour=flavour, tokens=3)
    *frames, _ = (await exchange(engine.port, chat("你好", stream=True))).events
    deltas = [json.loads(frame)["choices"][0]["delta"] for frame in frames]
    whole = (await exchange(engine.port, chat("你好"))).json["choices"][0]["message"]["content"]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole == "第0个第1个第2个"


async def test_more_than_max_num_seqs_wait(fake_engine: StartEngine) -> None:
    engine = await fake_engine(max_num_seqs=2, token_seconds=math.inf)
    streams = [asyncio.create_task(exchange(engine.port, STREAM)) for _ in range(3)]
    await engine.until(lambda: (engine.running, engine.waiting) == (2, 1))
    page = (await exchange(engine.port, request("/metrics"))).body.decode()
    assert 'vllm:num_requests_running{engine="0",model_name="/models/tiny-qwen2"} 2.0\n' in page
    assert 'vllm:num_requests_waiting{engine="0",model_name="/models/tiny-qwen2"} 1.0\n' in page
    await engine.terminate()
    assert {(await stream).events[-1] for stream in streams} == {"[DONE]"}


async def test_a_tool_is_called_in_pieces(fake_engine: StartEngine) -> None:
    engine = await fake_engine(tool_parser=True, calls_tools=True, tokens=5)
    tool = {"type": "function", "function": {"name": "get_weather"}}
    *frames, _ = (await exchange(engine.port, chat(stream=True, tools=[tool]))).events
    choices = [json.loads(frame)["choices"][0] for frame in frames]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert calls[0]["function"] == {"name": "get_weather"}
    assert json.loads("".join(call["function"]["arguments"] for call in calls[1:])) == {"city": "Paris"}
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_two_hundred_streams_at_once(fake_engine: StartEngine) -> None:
    engine = await fake_engine(max_num_seqs=256, tokens=20)
    replies = await asyncio.gather(*(exchange(engine.port, STREAM) for _ in range(200)))
    assert {len(reply.events) for reply in replies} == {22}
    assert engine.running == 0


# The start.


@pytest.mark.parametrize("flavour", list(Flavour))
async def test_a_start_refuses_then_answers_503_then_200(fake_engine: StartEngine, flavour: Flavour) -> None:
    engine = await fake_engine(flavour=flavour, boot_seconds=0.05, loading_seconds=math.inf)
    assert await refused(engine)
    await engine.until(lambda: engine.listening)
    assert (await exchange(engine.port, HEALTH)).status == 503
    assert (await exchange(engine.port, STREAM)).status == 503
    await engine.finish_loading()
    assert (await exchange(engine.port, HEALTH)).status == 200


async def test_the_load_is_printed_as_it_goes(fake_engine: StartEngine) -> None:
    engine = await fake_engine(boot_seconds=math.inf, shards=2)
    await engine.until(lambda: "Completed | 2/2" in engine.printed)
    assert "\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [" in engine.printed
    assert "Application startup complete" not in engine.printed
    await engine.finish_loading()
    assert engine.printed.endswith("INFO:     Application startup complete.\n")


async def test_the_log_tells_requests_and_statistics(fake_engine: StartEngine) -> None:
    engine = await fake_engine(stats_seconds=0.02)
    await exchange(engine.port, STREAM)
    host, port = engine.requests[0].peer
    assert f'INFO:     {host}:{port} - "POST {CHAT} HTTP/1.1" 200 OK\n' in engine.printed
    await engine.until(lambda: "Running: 0 reqs, Waiting: 0 reqs, GPU KV cache usage: 0.0%" in engine.printed)
    await engine.until(
        lambda: "prompt throughput: 0.0 tokens/s, Avg generation throughput: 0.0 tokens/s, Running: 0" in engine.printed
    )
    before = engine.printed
    # Idle now: after one line of zeros vLLM prints none.
    await asyncio.sleep(0.06)
    assert engine.printed == before


# Health, metrics, identity.


async def test_health_misbehaves_as_told_at_any_time(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    answers = []
    for health in (Health.OK, Health.STATUS, Health.REDIRECT, Health.CLOSE):
        engine.settings.health = health
        answers.append((await exchange(engine.port, HEALTH)).status)
    assert answers == [200, 503, 307, 0]


async def test_health_flaps(fake_engine: StartEngine) -> None:
    engine = await fake_engine(health=Health.FLAP)
    assert [(await exchange(engine.port, HEALTH)).status for _ in range(4)] == [200, 503, 200, 503]


@pytest.mark.parametrize("health", [Health.HANG, Health.DRIP])
async def test_health_without_an_end(fake_engine: StartEngine, health: Health) -> None:
    engine = await fake_engine(health=health)
    asking = asyncio.create_task(exchange(engine.port, HEALTH))
    await engine.until(lambda: engine.requests)
    # As long as it would take, had it an end.
    await asyncio.sleep(0.05)
    assert not asking.done()
    asking.cancel()
    await asyncio.wait({asking})
    await engine.until(lambda: engine.requests[0].outcome is Outcome.LEFT)


async def test_health_is_huge(fake_engine: StartEngine) -> None:
    engine = await fake_engine(health=Health.HUGE, huge_bytes=100_000)
    assert len((await exchange(engine.port, HEALTH)).body) == 100_000


@pytest.mark.parametrize(
    ("metrics", "status", "begins"),
    [
        (Metrics.OK, 200, b"# HELP python_info"),
        (Metrics.OFF, 404, b'{"detail":"Not Found"}'),
        (Metrics.ERROR, 500, b'{"error":'),
        (Metrics.REDIRECT, 302, b""),
        (Metrics.BINARY, 200, b"\x00\x01\x02"),
        (Metrics.HUGE, 200, b"vllm:prompt_tokens_total"),
        (Metrics.LONG_LINE, 200, b'vllm:a{b="xxx'),
        (Metrics.WEIRD, 200, b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running NaN"),
    ],
)
async def test_metrics_misbehave_as_told(
    fake_engine: StartEngine, metrics: Metrics, status: int, begins: bytes
) -> None:
    engine = await fake_engine(metrics=metrics, huge_bytes=10_000)
    reply = await exchange(engine.port, request("/metrics"))
    assert reply.status == status
    assert reply.body.startswith(begins)


async def test_metrics_without_an_end(fake_engine: StartEngine) -> None:
    engine = await fake_engine(metrics=Metrics.ENDLESS, drip_seconds=0)
    with pytest.raises(TimeoutError):
        await exchange(engine.port, request("/metrics"), seconds=0.05)
    await engine.until(lambda: engine.open_connections == 0)


@pytest.mark.parametrize(
    ("flavour", "family"),
    [
        (Flavour.VLLM, "vllm:generation_tokens_total"),
        (Flavour.SGLANG, "sglang:generation_tokens_total"),
        (Flavour.LLAMACPP, "llamacpp:tokens_predicted_total"),
    ],
)
async def test_counters_move(fake_engine: StartEngine, flavour: Flavour, family: str) -> None:
    engine = await fake_engine(flavour=flavour, tokens=7)
    await exchange(engine.port, STREAM)
    page = (await exchange(engine.port, request("/metrics"))).body.decode()
    values = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(family)]
    assert [float(value) for value in values] == [7.0]


async def test_a_foreign_server_on_the_port(fake_engine: StartEngine) -> None:
    engine = await fake_engine(foreign=Foreign.HTML)
    assert (await exchange(engine.port, HEALTH)).status == 200
    assert (await exchange(engine.port, request("/v1/models"))).body.startswith(b"<!DOCTYPE html>")


# Faults before and in the head.


async def strike(start: StartEngine, fault: Fault, **settings: Any) -> tuple[FakeEngine, Reply]:
    engine = await start(fault=fault, **settings)
    return engine, await exchange(engine.port, STREAM)


@pytest.mark.parametrize(
    ("fault", "raw", "end"),
    [
        (Fault.CLOSE, b"", End.FIN),
        (Fault.RESET, b"", End.RESET),
        (Fault.CLOSE_IN_STATUS, b"HTTP/1.1 20", End.FIN),
        (Fault.CLOSE_IN_HEADERS, b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-le", End.FIN),
        (Fault.SSH, b"SSH-2.0-OpenSSH_9.6\r\n", End.FIN),
        (Fault.TLS, b"\x15\x03\x01\x00\x02\x02\x46", End.FIN),
        (Fault.GARBAGE, bytes(range(256)) * 2, End.FIN),
    ],
)
async def test_no_answer_at_all(fake_engine: StartEngine, fault: Fault, raw: bytes, end: End) -> None:
    engine, reply = await strike(fake_engine, fault)
    assert (reply.raw, reply.end) == (raw, end)
    assert engine.requests[0].outcome is Outcome.FAULT


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (Fault.TWO_LENGTHS, b"content-length: 2\r\ncontent-length: 3\r\n"),
        (Fault.LENGTH_AND_CHUNKED, b"content-length: 2\r\ntransfer-encoding: chunked\r\n"),
        (Fault.NUL_HEADER, b"x-a: b\x00c\r\n"),
        (Fault.CR_HEADER, b"x-a: b\rc\r\n"),
        (Fault.MANY_HEADERS, b"\r\nx-499: y\r\n"),
        (Fault.SWITCH, b"HTTP/1.1 101 Switching Protocols\r\n"),
        (Fault.SHORT, b"content-length: 1000\r\n\r\n{}"),
    ],
)
async def test_a_head_that_is_wrong(fake_engine: StartEngine, fault: Fault, part: bytes) -> None:
    _, reply = await strike(fake_engine, fault)
    assert part in reply.raw


async def test_a_length_that_is_no_number(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.BAD_LENGTH)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(STREAM)
    assert b"content-length: abc\r\n" in await reader.read()
    writer.close()


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.ENDLESS_STATUS])
async def test_a_head_without_an_end(fake_engine: StartEngine, fault: Fault) -> None:
    engine = await fake_engine(fault=fault, drip_seconds=0.001)
    with pytest.raises(TimeoutError):
        await exchange(engine.port, STREAM, seconds=0.05)
    await engine.until(lambda: engine.open_connections == 0)


async def test_interim_answers_come_before_the_true_one(fake_engine: StartEngine) -> None:
    _, reply = await strike(fake_engine, Fault.FLOOD_1XX, fault_count=300)
    interim, true, _ = reply.raw.partition(b"HTTP/1.1 200 OK\r\n")
    assert interim == b"HTTP/1.1 102 Processing\r\n\r\n" * 300
    assert true


async def test_slow_headers_come_in_the_end(fake_engine: StartEngine) -> None:
    _, reply = await strike(fake_engine, Fault.SLOW_HEADERS, drip_seconds=0.0001)
    assert reply.events[-1] == "[DONE]"


async def test_413_comes_before_the_body_is_read(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.EARLY_413)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n".encode()
    reply = await exchange(engine.port, head + b"x" * 1000)
    assert (reply.status, reply.header("connection")) == (413, "close")
    assert engine.requests[0].body_at is None


# Faults in the body and after it.


@pytest.mark.parametrize(
    ("fault", "tail", "end"),
    [
        (Fault.FIN, b"\r\n", End.FIN),
        (Fault.IN_CHUNK, b'"chatcmpl-', End.FIN),
        (Fault.BAD_CHUNK, b"zz\r\ndata: {}\n\n\r\n", End.FIN),
        (Fault.RST, b"", End.RESET),
    ],
)
async def test_a_stream_dies_after_so_many_events(
    fake_engine: StartEngine, fault: Fault, tail: bytes, end: End
) -> None:
    engine, reply = await strike(fake_engine, fault, fault_after=2)
    assert reply.end is end
    assert reply.raw.endswith(tail)
    assert b"[DONE]" not in reply.raw
    # What an RST overtakes is lost.
    assert reply.raw.count(b'"content":') == 3 or end is End.RESET
    assert (engine.requests[0].events, engine.requests[0].outcome) == (2, Outcome.FAULT)


async def test_a_stall_keeps_health_at_200(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.STALL, fault_after=2)
    stream = asyncio.create_task(exchange(engine.port, STREAM, seconds=0.1))
    await engine.until(lambda: engine.requests and engine.requests[0].events == 2)
    assert (await exchange(engine.port, HEALTH)).status == 200
    assert engine.running == 1
    with pytest.raises(TimeoutError):
        await stream


async def test_sigterm_ends_a_stall(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.STALL)
    streams = [asyncio.create_task(exchange(engine.port, each)) for each in (STREAM, chat())]
    await engine.until(lambda: engine.running == 2)
    await engine.terminate()
    assert b'"finish_reason":"abort"' in (await streams[0]).raw
    assert b'"finish_reason":"abort"' in (await streams[1]).raw


async def test_an_error_event_ends_a_stream(fake_engine: StartEngine) -> None:
    _, reply = await strike(fake_engine, Fault.ERROR_EVENT)
    *_, error, done = reply.events
    assert json.loads(error)["error"]["code"] == 500
    assert (done, reply.end) == ("[DONE]", End.FRAMED)


async def test_an_event_of_five_mebibytes_and_the_stream_goes_on(fake_engine: StartEngine) -> None:
    _, reply = await strike(fake_engine, Fault.HUGE_EVENT)
    assert max(len(event) for event in reply.events) > 5 * 1024 * 1024
    assert reply.events[-1] == "[DONE]"


async def test_the_process_ends_within_a_stream(fake_engine: StartEngine) -> None:
    engine, reply = await strike(fake_engine, Fault.EXIT, exit_code=3)
    assert engine.exit_code == 3
    assert b"[DONE]" not in reply.raw
    assert await refused(engine)


async def test_a_fault_strikes_so_many_times_and_only_its_paths(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.STATUS, fault_status=429, fault_retry_after="7", fault_times=2)
    replies = [await exchange(engine.port, chat()) for _ in range(3)]
    assert [reply.status for reply in replies] == [429, 429, 200]
    assert replies[0].header("retry-after") == "7"
    assert replies[0].json["error"]["type"] == "RateLimitError"
    engine.forget()
    assert (await exchange(engine.port, HEALTH)).status == 200
    engine.settings.fault_paths = ("*",)
    assert (await exchange(engine.port, HEALTH)).status == 429


async def test_gzip_nobody_asked_for(fake_engine: StartEngine) -> None:
    engine, stream = await strike(fake_engine, Fault.GZIP)
    assert stream.header("content-encoding") == "gzip"
    assert gzip.decompress(stream.body).endswith(b"data: [DONE]\n\n")
    whole = await exchange(engine.port, chat())
    assert json.loads(gzip.decompress(whole.body))["object"] == "chat.completion"
    engine.settings.fault = Fault.GZIP_TRUNCATED
    cut = zlib.decompressobj(wbits=31)
    cut.decompress((await exchange(engine.port, chat())).body)
    assert not cut.eof


@pytest.mark.parametrize("fault", [Fault.EXTRA, Fault.STRAY])
async def test_bytes_nobody_asked_for_follow_the_answer(fake_engine: StartEngine, fault: Fault) -> None:
    engine = await fake_engine(fault=fault, keep_alive_seconds=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(chat())
    assert (await reader.read()).endswith(b"not your data")
    writer.close()


async def test_keep_alive_is_promised_and_broken(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.CLOSE_AFTER)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(chat())
    assert b"connection: close" not in await reader.read()
    writer.close()
    assert not engine.peers[0].closed_by_peer


# Connections and the record.


async def test_an_idle_connection_is_closed(fake_engine: StartEngine) -> None:
    engine = await fake_engine(keep_alive_seconds=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(HEALTH + HEALTH)
    assert (await reader.read()).count(b"HTTP/1.1 200 OK\r\n") == 2
    writer.close()
    assert [peer.requests for peer in engine.peers] == [2]


async def test_a_client_that_leaves_ends_its_generation(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=math.inf)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(STREAM)
    await engine.until(lambda: engine.running == 1)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await engine.until(lambda: engine.running == 0)
    assert engine.requests[0].outcome is Outcome.LEFT
    assert engine.peers[0].closed_by_peer
    assert engine.peers[0].closed_at is not None


async def test_the_record_holds_what_arrived_byte_for_byte(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "user": "y" * 3_000_000}).encode()
    head = f"POST {CHAT}?a=%2F+b HTTP/1.1\r\nHost: H\r\nX-Odd:  two  \r\nContent-Type: application/json\r\n"
    data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
    assert (await exchange(engine.port, data + body)).status == 200
    arrived = engine.requests[0]
    assert arrived.head == data
    assert arrived.target == f"{CHAT}?a=%2F+b"
    assert arrived.header("X-Odd") == "two"
    assert (arrived.body_bytes, arrived.body_sha256) == (len(body), hashlib.sha256(body).hexdigest())


async def test_a_body_is_waited_for_after_100_continue(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    head, _, body = chat().partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(head + b"\r\nexpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_what_is_no_http_is_refused(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    reply = await exchange(engine.port, b"\x16\x03\x01 hello\r\n\r\n")
    assert (reply.status, reply.body) == (400, b"Invalid HTTP request received.")


async def test_the_control_endpoint_shows_and_changes(fake_engine: StartEngine) -> None:
    engine = await fake_engine(control_port=0, boot_seconds=math.inf)
    assert engine.control_port is not None
    port = engine.control_port
    assert (await exchange(port, request("/__fake__"))).json["ready"] is False
    await exchange(
        port, request("/__fake__", {"set": {"fault": "status", "fault_status": 503}, "do": "finish_loading"})
    )
    await asyncio.wait_for(engine.ready.wait(), 40)
    assert (await exchange(engine.port, chat())).status == 503
    state = (await exchange(engine.port, request("/__fake__"))).json
    assert [(each["target"], each["status"]) for each in state["requests"]] == [(CHAT, 503)]
    wrong = await exchange(port, request("/__fake__", {"set": {"falt": "fin"}}))
    assert (wrong.status, wrong.json["error"][:18]) == (400, "no setting 'falt';")
    await exchange(port, request("/__fake__", {"do": "crash"}))
    await engine.until(lambda: engine.exit_code == -9)


# The end.


async def test_sigterm_aborts_streams_as_vllm_does(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=math.inf)
    stream = asyncio.create_task(exchange(engine.port, STREAM))
    await engine.until(lambda: engine.running == 1)
    await engine.terminate()
    *_, last, done = (await stream).events
    assert json.loads(last)["choices"][0]["finish_reason"] == "abort"
    assert (done, engine.exit_code) == ("[DONE]", 0)
    assert await refused(engine)


async def test_sigterm_drains_as_sglang_does(fake_engine: StartEngine) -> None:
    engine = await fake_engine(flavour=Flavour.SGLANG, tokens=5, token_seconds=0.02)
    stream = asyncio.create_task(exchange(engine.port, STREAM))
    await engine.until(lambda: engine.running == 1)
    end = asyncio.create_task(engine.terminate())
    await engine.until(lambda: engine.stopping)
    assert (await exchange(engine.port, HEALTH)).status == 503
    assert (await stream).events[-1] == "[DONE]"
    await end
    assert engine.exit_code == 0


async def test_sigterm_is_ignored_when_told(fake_engine: StartEngine) -> None:
    engine = await fake_engine(stop=Stop.IGNORE)
    await engine.terminate()
    assert engine.exit_code is None
    assert (await exchange(engine.port, HEALTH)).status == 200


async def test_a_restart_keeps_the_port_and_begins_anew(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    port = engine.port
    await engine.crash()
    assert await refused(engine)
    await engine.restart()
    assert engine.port == port
    assert (await exchange(port, HEALTH)).status == 200
    assert engine.exit_code is None


async def test_a_crash_resets_every_connection(fake_engine: StartEngine) -> None:
    engine = await fake_engine(token_seconds=math.inf)
    stream = asyncio.create_task(exchange(engine.port, STREAM))
    await engine.until(lambda: engine.running == 1)
    await engine.crash()
    assert (await stream).end is End.RESET
    assert engine.requests[0].outcome is Outcome.ABORTED


# As a program.


def test_the_command_lines_of_the_engines_are_understood() -> None:
    reference = (
        "--host 127.0.0.1 --port 81 --tensor-parallel-size 1 --max-model-len 99 --trust-remote-code --max-num-seqs 5"
    )
    switches = [
        "--trust-remote-code",
        "--served-model-name",
        "a",
        "b",
        "--fake",
        "fault=fin",
        "--fake",
        "boot_seconds=inf",
    ]
    argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", "/m", *reference.split(), *switches]
    vllm = settings_from(argv, {"FAKE_ENGINE": '{"tokens": 9}'})
    assert (vllm.flavour, vllm.model, vllm.port, vllm.max_model_len) == (Flavour.VLLM, "/m", 81, 99)
    assert (vllm.max_num_seqs, vllm.served_names, vllm.tokens) == (5, ("a", "b"), 9)
    assert (vllm.fault, vllm.boot_seconds) == (Fault.FIN, math.inf)
    sglang = settings_from(["-m", "sglang.launch_server", "--model-path", "/m", "--max-running-requests=7"], {})
    assert (sglang.flavour, sglang.model, sglang.max_num_seqs) == (Flavour.SGLANG, "/m", 7)
    llamacpp = settings_from(["-m", "/m.gguf", "-c", "8192", "-np", "4", "--metrics", "--alias", "it"], {})
    assert (llamacpp.flavour, llamacpp.model, llamacpp.max_model_len) == (Flavour.LLAMACPP, "/m.gguf", 2048)
    assert llamacpp.served_names == ("it",)


def test_a_wrong_switch_is_named() -> None:
    with pytest.raises(ValueError, match="fault='fine'"):
        settings_from(["--fake", "fault=fine"], {})
    with pytest.raises(ValueError, match="no setting 'bot_seconds'"):
        FakeSettings().change({"bot_seconds": 1})


async def launch(*argv: str, **environ: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, **environ}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


async def printed_until(process: asyncio.subprocess.Process, part: bytes) -> bytes:
    assert process.stdout is not None
    text = b""
    async with asyncio.timeout(60):
        while part not in text:
            text += await process.stdout.readline()
    return text


@pytest.mark.slow
async def test_the_shim_runs_in_the_engines_place(tmp_path: Path, unused_tcp_port: int) -> None:
    write_shims(tmp_path)
    argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", "/models/x", "--port", str(unused_tcp_port)]
    process = await launch(str(tmp_path / "python3"), *argv, "--fake", "token_seconds=0.05", "--fake", "tokens=1000")
    try:
        await printed_until(process, b"Application startup complete.")
        stream = asyncio.create_task(exchange(unused_tcp_port, STREAM))
        await printed_until(process, b'"POST /v1/chat/completions HTTP/1.1" 200 OK')
        process.terminate()
        assert (await stream).events[-1] == "[DONE]"
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("end", "survive"), [(signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_children_end_with_a_clean_stop_and_outlive_a_crash(
    unused_tcp_port: int, end: signal.Signals, survive: bool
) -> None:
    argv = [sys.executable, "-m", "tests.fake", "--port", str(unused_tcp_port), "--fake", "children=1"]
    with subprocess.Popen(
        argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "Application startup complete." not in process.stderr.readline():
            assert process.poll() is None
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.send_signal(end)
        process.wait()
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        survived = False
    else:
        survived = True
    assert survived is survive


@pytest.mark.slow
async def test_a_dead_core_takes_the_server_along_with_exit_code_0(unused_tcp_port: int) -> None:
    argv = ["-m", "tests.fake", "--port", str(unused_tcp_port), "--fake", "core_death_seconds=0.1"]
    process = await launch(sys.executable, *argv, PYTHONPATH=str(ROOT))
    await printed_until(process, b"Application startup complete.")
    process.send_signal(signal.SIGUSR1)
    await printed_until(process, b"EngineDeadError")
    assert (await exchange(unused_tcp_port, HEALTH)).status == 503
    assert await process.wait() == 0


@pytest.mark.slow
async def test_sigterm_while_loading_ends_by_the_signal(unused_tcp_port: int) -> None:
    argv = ["-m", "tests.fake", "--port", str(unused_tcp_port), "--fake", "boot_seconds=inf"]
    process = await launch(sys.executable, *argv, PYTHONPATH=str(ROOT))
    await printed_until(process, b"Available routes are:")
    process.terminate()
    assert await process.wait() == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "last"),
    [
        ("model_path", 1, b"HFValidationError: Repo id must be in the form"),
        ("context_too_long", 1, b"For further information visit"),
        ("port_in_use", 1, b"OSError: [Errno 98] Address already in use"),
        ("cuda_oom", 1, b"RuntimeError: Engine core initialization failed. See root cause above."),
        ("unknown_flag", 2, b"error: unrecognized arguments: --no-such-flag"),
    ],
)
async def test_a_failed_start_prints_what_was_captured(name: str, code: int, last: bytes) -> None:
    process = await launch(
        sys.executable, "-m", "tests.fake", FAKE_ENGINE=f'{{"start_failure": "{name}"}}', PYTHONPATH=str(ROOT)
    )
    assert process.stdout is not None
    text = await process.stdout.read()
    assert last in text.splitlines()[-1]
    assert await process.wait() == code
