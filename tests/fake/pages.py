"""The pages that are not generation, with their own ways to go wrong: `/health`, `/metrics`, a foreign server's."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

from tests.fake import faults
from tests.fake.counters import Counters
from tests.fake.dialect import Answer, Dialect, compact
from tests.fake.exposition import page
from tests.fake.settings import FakeSettings, Flavour, Foreign, Health, Metrics
from tests.fake.wire import Connection, Request

Send = Callable[[Connection, Request, Answer], Awaitable[bool]]

_LINE = b'vllm:prompt_tokens_total{engine="0"} 1.0\n'
_WEIRD = (
    b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running NaN\n"
    b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running +Inf\n"
    b"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc -0\n"
    b"# TYPE wings_engine_state gauge\nwings_engine_state 7\n"
)


async def health(
    settings: FakeSettings, dialect: Dialect, connection: Connection, request: Request, calls: int, send: Send
) -> bool:
    """Answer `/health` of a started engine as `settings.health` says; `calls` counts from one."""
    ok = dialect.health(200)
    match settings.health:
        case Health.OK:
            return await send(connection, request, ok)
        case Health.STATUS:
            return await send(connection, request, Answer(settings.health_status, content_type=None))
        case Health.FLAP:
            return await send(connection, request, ok if calls % 2 else dialect.health(503))
        case Health.REDIRECT:
            return await send(connection, request, Answer(307, content_type=None, headers=(("location", "/health"),)))
        case Health.HUGE:
            return await send(connection, request, Answer(200, b"x" * settings.huge_bytes, "text/plain"))
        case Health.HANG:
            await asyncio.Event().wait()
        case Health.DRIP:
            endless = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\nx-slow: " + b"z" * 100_000
            await faults.drip(connection, endless, settings.drip_seconds)
        case Health.CLOSE:
            connection.close()
    return False


async def metrics(
    settings: FakeSettings,
    counters: Counters,
    dialect: Dialect,
    connection: Connection,
    request: Request,
    send: Send,
) -> bool:
    """Answer `/metrics` as `settings.metrics` says."""
    match settings.metrics:
        case Metrics.OK:
            body = page(settings.flavour, counters, dialect.names[0], settings.adapters)
            return await send(connection, request, _exposition(settings.flavour, body, request.method))
        case Metrics.WEIRD:
            return await send(connection, request, _exposition(settings.flavour, _WEIRD, request.method))
        case Metrics.OFF:
            return await send(connection, request, Answer(404, compact({"detail": "Not Found"})))
        case Metrics.ERROR:
            return await send(connection, request, dialect.error(500, "Internal Server Error"))
        case Metrics.REDIRECT:
            return await send(connection, request, Answer(302, content_type=None, headers=(("location", "/metrics"),)))
        case Metrics.BINARY:
            return await send(connection, request, Answer(200, bytes(range(256)) * 16, "text/plain"))
        case Metrics.HUGE | Metrics.BOMB:
            return await send(connection, request, _many(settings))
        case Metrics.LONG_LINE:
            label = b"x" * settings.huge_bytes
            return await send(connection, request, Answer(200, b'vllm:a{b="' + label + b'"} 1\n', "text/plain"))
        case Metrics.ENDLESS:
            connection.write(dialect.head(Answer(200, content_type="text/plain", chunked=True), request))
            while not connection.lost:
                connection.write(faults.chunk(b"vllm:num_requests_running 1\n" * 1000))
                await connection.drain()
                await asyncio.sleep(settings.drip_seconds)
        case Metrics.HANG:
            await asyncio.Event().wait()
    return False


def _many(settings: FakeSettings) -> Answer:
    if settings.metrics is Metrics.HUGE:
        return Answer(200, _LINE * (settings.huge_bytes // len(_LINE)), "text/plain")
    lines = _LINE * 25_000  # a megabyte, in a few kilobytes
    body = gzip.compress(lines, mtime=0) * (settings.huge_bytes // len(lines))
    return Answer(200, body, "text/plain", (("content-encoding", "gzip"),))


def _exposition(flavour: Flavour, body: bytes, method: str) -> Answer:
    match flavour:
        case Flavour.VLLM if method == "HEAD":
            return Answer(200, content_type="text/plain; version=0.0.4; charset=utf-8", length=False)
        case Flavour.VLLM:
            return Answer(200, body, "text/plain; version=1.0.0; charset=utf-8")
        case Flavour.SGLANG:
            return Answer(200, body, "text/plain; version=0.0.4; charset=utf-8", chunked=True)
        case Flavour.LLAMACPP:
            return Answer(200, body, "text/plain; version=0.0.4", early=(("Process-Start-Time-Unix", "2365247756"),))


def foreign(kind: Foreign, path: str) -> Answer:
    """Return the answer of a server that is no engine."""
    if kind is Foreign.HTML:
        return Answer(200, b"<!DOCTYPE html><title>It works!</title>", "text/html")
    if kind is Foreign.UNAUTHORIZED and path != "/health":
        return Answer(401, compact({"error": "Unauthorized"}))
    return Answer(200, content_type=None)
