"""Asking an engine how it is: every kind of answer, and none."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fake_engine import Fault, Foreign, Health, StartEngine
from tests.ports import free_port
from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle.probe import HealthProbe, Prober
from wings_proxy.lifecycle.state import Outcome, ProbeResult


@asynccontextmanager
async def probing(
    port: int, engine: str = "vllm", seconds: float = 5.0, key: bytes | None = None
) -> AsyncIterator[HealthProbe]:
    async with HealthProbe(ENGINES[engine], port, timeout=seconds, api_key=key, clock=time.monotonic) as probe:
        yield probe


async def outcome_of(port: int, **options: Any) -> tuple[Outcome, str]:
    async with probing(port, **options) as probe:
        result = await probe.ask(7)
    assert result.epoch == 7
    return result.outcome, result.detail


@pytest.mark.parametrize("flavour", ["vllm", "sglang", "llamacpp"])
async def test_a_ready_engine_of_each_kind_is_healthy(fake_engine: StartEngine, flavour: Any) -> None:
    engine = await fake_engine(flavour=flavour)
    assert await outcome_of(engine.port, engine=flavour) == (Outcome.HEALTHY, "")


async def test_nobody_listening_is_refused() -> None:
    outcome, detail = await outcome_of(free_port())
    assert outcome is Outcome.REFUSED
    assert "cannot connect" in detail


async def test_descriptors_that_ran_out_are_not_the_engines_refusal(fake_engine: StartEngine) -> None:
    """Two refusals end `ready` at once; what we cannot open says nothing of who listens."""
    engine = await fake_engine()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with probing(engine.port) as probe:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            result = await probe.ask(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (result.outcome, result.detail) == (Outcome.BROKEN, "cannot connect to the engine: Too many open files")


async def test_a_status_that_is_not_200_is_unhealthy(fake_engine: StartEngine) -> None:
    engine = await fake_engine(health=Health.STATUS, health_status=503)
    assert await outcome_of(engine.port) == (Outcome.UNHEALTHY, "/health answered 503")


async def test_no_answer_in_time_is_a_timeout(fake_engine: StartEngine) -> None:
    engine = await fake_engine(health=Health.HANG)
    assert await outcome_of(engine.port, seconds=0.05) == (Outcome.TIMEOUT, "no answer within 0.05 s")


async def test_a_redirect_is_not_followed(fake_engine: StartEngine) -> None:
    engine = await fake_engine(health=Health.REDIRECT)
    outcome, detail = await outcome_of(engine.port)
    assert outcome is Outcome.UNHEALTHY
    assert "answered 30" in detail


async def test_a_huge_answer_is_not_read_to_its_end(fake_engine: StartEngine) -> None:
    engine = await fake_engine(health=Health.HUGE, huge_bytes=50_000_000)
    outcome, _ = await outcome_of(engine.port)
    assert outcome is Outcome.HEALTHY


async def test_an_answer_without_an_end_is_read_no_further_than_it_may_matter() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            endless = head.startswith(b"GET /health ")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + (b"" if endless else b'{"data": []}'))
            while endless:
                writer.write(bytes(65536))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        assert await outcome_of(server.sockets[0].getsockname()[1], seconds=3.0) == (Outcome.HEALTHY, "")


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def scripted(answers: dict[bytes, bytes]) -> AsyncIterator[int]:
    """A server that answers each path with bytes, then closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[head.split(b" ")[1]])
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def answer(body: bytes, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%bContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)


@pytest.mark.parametrize(
    "garbage",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"\x15\x03\x01", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 two\r\n\r\n"],
)
async def test_what_is_not_http_is_broken(garbage: bytes) -> None:
    async with scripted({b"/health": garbage}) as port:
        outcome, detail = await outcome_of(port)
    assert outcome is Outcome.BROKEN
    assert "\n" not in detail


@pytest.mark.parametrize(
    ("models", "outcome"),
    [
        (answer(b'{"object": "list", "data": []}'), Outcome.HEALTHY),
        (answer(b"", b"401 Unauthorized"), Outcome.HEALTHY),
        (answer(b"", b"403 Forbidden"), Outcome.HEALTHY),
        (answer(b"<html>hello</html>"), Outcome.FOREIGN),
        (answer(b'{"data": 1}'), Outcome.FOREIGN),
        (answer(b"[]"), Outcome.FOREIGN),
        (answer(b"[" * 100_000), Outcome.FOREIGN),
        (answer(b"\xff"), Outcome.FOREIGN),
        (answer(b"", b"404 Not Found"), Outcome.FOREIGN),
        # A few kilobytes can become gigabytes: nothing is unpacked.
        (answer(gzip.compress(b'{"data": []}'), fields=b"Content-Encoding: gzip\r\n"), Outcome.FOREIGN),
    ],
)
async def test_an_engine_is_known_by_its_model_list(models: bytes, outcome: Outcome) -> None:
    async with scripted({b"/health": answer(b""), b"/v1/models": models}) as port:
        assert (await outcome_of(port))[0] is outcome


async def test_it_is_asked_for_its_models_once_for_each_run(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    async with probing(engine.port) as probe:
        for epoch in (1, 1, 1, 2):
            assert (await probe.ask(epoch)).outcome is Outcome.HEALTHY
    assert [request.path for request in engine.requests].count("/v1/models") == 2
    assert {request.header("accept-encoding") for request in engine.requests} == {"identity"}


async def test_a_foreign_server_is_not_taken_for_an_engine(fake_engine: StartEngine) -> None:
    engine = await fake_engine(foreign=Foreign.HTML)
    assert (await outcome_of(engine.port))[0] is Outcome.FOREIGN


async def test_the_engines_own_key_is_shown_to_it(fake_engine: StartEngine) -> None:
    engine = await fake_engine(api_key="secret-of-the-engine")
    async with probing(engine.port, key=b"secret-of-the-engine") as probe:
        assert (await probe.ask(1)).outcome is Outcome.HEALTHY
    assert all(b"secret-of-the-engine" in request.head for request in engine.requests)


async def never() -> bool:
    raise AssertionError("a good probe needs no second opinion")


@pytest.mark.parametrize("worked", [True, False])
async def test_a_failed_probe_of_a_busy_engine_says_that_it_works(fake_engine: StartEngine, *, worked: bool) -> None:
    engine = await fake_engine(health=Health.STATUS)
    results: asyncio.Queue[ProbeResult] = asyncio.Queue()

    async def counters_move() -> bool:
        return worked

    async with probing(engine.port) as probe, asyncio.TaskGroup() as group:
        prober = Prober(probe, interval=3600.0, worked=counters_move)
        task = group.create_task(prober.run(lambda: 1, lambda: True, results.put_nowait))
        result = await results.get()
        assert (result.outcome, result.worked) == (Outcome.UNHEALTHY, worked)
        task.cancel()


async def test_who_refuses_a_connection_is_not_asked_whether_it_is_busy() -> None:
    results: asyncio.Queue[ProbeResult] = asyncio.Queue()
    async with probing(free_port()) as probe, asyncio.TaskGroup() as group:
        prober = Prober(probe, interval=3600.0, worked=never)
        task = group.create_task(prober.run(lambda: 1, lambda: True, results.put_nowait))
        assert (await results.get()).outcome is Outcome.REFUSED
        task.cancel()


async def test_the_prober_waits_its_interval_and_comes_at_once_when_asked(fake_engine: StartEngine) -> None:
    engine = await fake_engine()
    results: asyncio.Queue[ProbeResult] = asyncio.Queue()
    async with probing(engine.port) as probe, asyncio.TaskGroup() as group:
        prober = Prober(probe, interval=3600.0, worked=never)
        task = group.create_task(prober.run(lambda: 1, lambda: True, results.put_nowait))
        assert (await results.get()).outcome is Outcome.HEALTHY
        prober.soon()
        async with asyncio.timeout(40):
            assert (await results.get()).outcome is Outcome.HEALTHY
        assert results.empty()
        task.cancel()


# -- a token -----------------------------------------------------------------------------------------------------------


async def test_the_least_work_there_is_is_one_token_of_the_model_it_has(fake_engine: StartEngine) -> None:
    engine = await fake_engine(served_names=("somebody",))
    async with probing(engine.port) as probe:
        await probe.ask_for_a_token(60.0)
    assert [request.path for request in engine.requests] == ["/v1/models", "/v1/completions"]
    assert json.loads(engine.requests[-1].body) == {"model": "somebody", "prompt": "1", "max_tokens": 1}
    assert engine.requests[-1].status == 200


async def test_a_model_that_generates_nothing_is_asked_for_an_embedding(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.STATUS, fault_status=404, fault_paths=("/v1/completions",), embeddings=True)
    async with probing(engine.port) as probe:
        await probe.ask_for_a_token(60.0)
    assert [(request.path, request.status) for request in engine.requests][1:] == [
        ("/v1/completions", 404),
        ("/v1/embeddings", 200),
    ]


async def test_an_engine_that_hangs_is_rid_of_the_request_in_the_end(fake_engine: StartEngine) -> None:
    engine = await fake_engine(fault=Fault.HANG)
    async with probing(engine.port) as probe:
        await probe.ask_for_a_token(0.2)
        await engine.until(lambda: engine.requests[-1].ended_at is not None)


@pytest.mark.parametrize("models", [b"", b"[]", b'{"data": []}', b'{"data": [{"id": 1}]}', b"[" * 100_000])
async def test_an_engine_that_lists_nothing_is_asked_all_the_same(models: bytes) -> None:
    refused = answer(b"", b"400 Bad Request")
    async with (
        scripted({b"/v1/models": answer(models), b"/v1/completions": refused, b"/v1/embeddings": refused}) as port,
        probing(port) as probe,
    ):
        await probe.ask_for_a_token(60.0)


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 two\r\n\r\n"])
async def test_what_it_answers_is_nobodys_error(garbage: bytes) -> None:
    async with scripted({b"/v1/models": garbage}) as port, probing(port) as probe:
        await probe.ask_for_a_token(60.0)
    async with probing(free_port()) as probe:
        await probe.ask_for_a_token(60.0)
