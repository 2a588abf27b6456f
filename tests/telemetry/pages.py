"""A `/metrics` of ours in front of an engine's page that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from wings_proxy.engines import ENGINES
from wings_proxy.engines.metrics import EngineSample
from wings_proxy.lifecycle.engine_log import LogCounts
from wings_proxy.telemetry.engine_families import EngineFamilies
from wings_proxy.telemetry.engine_scrape import EngineScrape
from wings_proxy.telemetry.scrape import MetricsPage

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def whole(body: bytes, status: str = "200 OK", *headers: bytes) -> Answer:
    """An answer with its length, then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 " + status.encode() + b"\r\ncontent-length: %d\r\n" % len(body)
        writer.write(head + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body)
        await writer.drain()

    return answer


async def hang(_: asyncio.StreamWriter) -> None:
    """An engine that says nothing as long as anybody listens; `Stand` knows it."""
    raise AssertionError


class Stand:
    """An engine that answers each connection as `answer` does, a scrape of it, and the page that comes of it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.listening = True
        self.epoch = 1
        self.now = 100.0
        self.said_in_log: EngineSample | None = None
        self.scrape: EngineScrape
        self.page: MetricsPage

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is hang:
                await reader.read()
            else:
                await self.answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def app(self) -> web.Application:
        application = web.Application()
        self.page.add_route(application.router)
        return application


@asynccontextmanager
async def stand(
    answer: Answer, *, engine: str = "vllm", within: float = 30.0, max_bytes: int = 1 << 20, key: bytes | None = None
) -> AsyncIterator[Stand]:
    made = Stand(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    registry = CollectorRegistry()
    Counter("wings_things", "Things.", ["name"], registry=registry).labels('a"b\\c\n中').inc(2)
    async with server:
        made.scrape = EngineScrape(
            ENGINES[engine],
            server.sockets[0].getsockname()[1],
            timeout=within,
            max_bytes=max_bytes,
            api_key=key,
            clock=lambda: made.now,
            epoch=lambda: made.epoch,
            listening=lambda: made.listening,
        )
        families = EngineFamilies(
            registry,
            model_name="tiny",
            from_log=lambda: made.said_in_log,
            log_counts=LogCounts(lines=5, dropped_bytes=7),
            succeeded_at=lambda: made.scrape.succeeded_at,
            clock=lambda: made.now,
        )
        made.page = MetricsPage(registry, made.scrape, families)
        async with made.scrape:
            yield made
