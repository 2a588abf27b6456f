"""One generation from its place in the queue to its last byte."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from tests.fake import faults
from tests.fake.counters import Counters
from tests.fake.dialect import CORE_DIED, DONE, Answer, Dialect, Generation
from tests.fake.logs import Log, Output
from tests.fake.settings import FakeSettings, Fault
from tests.fake.wire import Connection, Outcome, Request


class Host(Protocol):
    """What a generation needs of the engine it runs in."""

    settings: FakeSettings
    counters: Counters
    log: Log
    ending: str
    slots: asyncio.Semaphore
    leave: Callable[[int], Awaitable[None]]

    @property
    def dialect(self) -> Dialect: ...
    def changed(self) -> None: ...
    def emit(self, lines: Iterable[Output]) -> None: ...
    def answered(self, request: Request, status: int) -> None: ...
    async def pause(self, seconds: float) -> None: ...
    async def send(
        self, connection: Connection, request: Request, answer: Answer, fault: Fault | None = None
    ) -> bool: ...


class Run:
    """A generation under way."""

    def __init__(
        self, host: Host, connection: Connection, request: Request, generation: Generation, fault: Fault | None
    ) -> None:
        self._host = host
        self._connection = connection
        self._request = request
        self._generation = generation
        self._fault = fault
        self._dialect = host.dialect
        zipped = fault in {Fault.GZIP, Fault.GZIP_TRUNCATED}
        self._packer = zlib.compressobj(wbits=31) if zipped else None

    async def run(self) -> bool:
        """Queue, make the tokens, answer; return True if the connection may carry another request."""
        host, counters, generation = self._host, self._host.counters, self._generation
        if generation.stream:
            # vLLM answers 200 before the request is scheduled.
            await self._stream_head()
        counters.waiting += 1
        host.changed()
        try:
            await host.slots.acquire()
        finally:
            counters.waiting -= 1
        counters.running += 1
        counters.prompt_tokens += generation.prompt_tokens
        counters.prefix_queries += generation.prompt_tokens
        counters.cached_tokens += generation.prompt_tokens
        host.changed()
        began = time.monotonic()
        try:
            await host.pause(host.settings.first_token_seconds)
            counters.first_token.observe(time.monotonic() - began)
            return await (self._stream() if generation.stream else self._whole())
        except asyncio.CancelledError:
            counters.aborted += 1
            raise
        finally:
            host.slots.release()
            counters.running -= 1
            counters.cached_tokens -= generation.prompt_tokens + generation.made
            seconds = time.monotonic() - began
            counters.whole.observe(seconds)
            host.emit(host.log.finished(self._request.number, generation.prompt_tokens, generation.made, seconds))
            host.changed()

    def _step(self) -> None:
        """Count one token of every choice."""
        counters = self._host.counters
        self._generation.made += 1
        self._request.events += 1
        counters.cached_tokens += 1
        counters.generation_tokens += self._generation.choices
        counters.steps += 1
        self._host.changed()

    async def _stream_head(self) -> None:
        if self._fault is Fault.FLOOD_1XX:
            await faults.interim(self._connection, self._host.settings.fault_count)
        head = self._dialect.stream_head(self._request)
        if self._packer is not None:
            head = head[:-2] + b"content-encoding: gzip\r\n\r\n"
        self._host.answered(self._request, 200)
        if self._fault is Fault.SLOW_HEADERS:
            await faults.drip(self._connection, head, self._host.settings.drip_seconds)
        else:
            self._connection.write(head)

    def _over(self) -> bool:
        """Tell whether only the last token, or none, is left to make."""
        return bool(self._host.ending) or self._generation.made >= self._generation.tokens - 1

    def _write(self, data: bytes) -> None:
        if self._packer is not None:
            data = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        self._connection.write(faults.chunk(data))

    async def _stream(self) -> bool:
        host, generation = self._host, self._generation
        for data in self._dialect.opening(generation):
            self._write(data)
        if self._dialect.opens_with_token and generation.tokens:
            self._step()
        due = self._fault in faults.WITHIN
        while not self._over():
            if due and generation.made >= host.settings.fault_after:
                due = False
                if not await self._strike():
                    return False
            await self._token_pause()
            if self._over():
                break
            text = generation.piece(generation.made)
            for choice in range(generation.choices):
                self._write(self._dialect.event(generation, choice, text))
            self._step()
            await self._connection.drain()
        if due and not host.ending and not await self._strike():
            return False
        await self._token_pause()
        return await self._end()

    async def _end(self) -> bool:
        generation, connection = self._generation, self._connection
        if self._host.ending:
            self._request.outcome = Outcome.ABORTED
        if self._host.ending == "dead":
            self._write(self._dialect.error_event())
            self._write(DONE)
        else:
            text, finish = "", "abort" if self._host.ending else generation.finish
            if not self._host.ending and generation.made < generation.tokens:
                text = generation.piece(generation.made)
                self._step()
            self._count_finish(finish)
            for data in self._dialect.closing(generation, text, finish):
                self._write(data)
        if self._packer is not None and self._fault is Fault.GZIP:
            connection.write(faults.chunk(self._packer.flush()))
        connection.write(b"0\r\n\r\n")
        await connection.drain()
        if self._fault in faults.AFTER:
            await faults.afterwards(self._fault, connection, self._host.settings.drip_seconds)
        return self._fault is not Fault.CLOSE_AFTER

    async def _token_pause(self) -> None:
        began = time.monotonic()
        await self._host.pause(self._host.settings.token_seconds)
        self._host.counters.between_tokens.observe(time.monotonic() - began)
        if self._generation.made % 16 == 15:
            # Without an interval the loop would otherwise see nothing else until the stream is out.
            await asyncio.sleep(0)

    def _count_finish(self, finish: str) -> None:
        finished = self._host.counters.finished
        finished[finish] = finished.get(finish, 0) + 1

    async def _strike(self) -> bool:
        if self._fault is Fault.STALL:
            # SIGTERM ends it, as it ends every generation.
            await self._host.pause(math.inf)
            return True
        assert self._fault is not None
        event = self._dialect.error_event()
        return await faults.within(self._fault, self._connection, self._host.settings, event, self._host.leave)

    async def _whole(self) -> bool:
        host, generation = self._host, self._generation
        match self._fault:
            case Fault.STALL:
                await host.pause(math.inf)
            case Fault.EXIT:
                await host.leave(host.settings.exit_code)
                return False
            case Fault.ERROR_EVENT:
                return await host.send(self._connection, self._request, self._dialect.error(500, CORE_DIED))
            case _:
                await host.pause(host.settings.token_seconds * max(0, generation.tokens - 1))
        while generation.made < generation.tokens:
            self._step()
        finish = "abort" if host.ending else generation.finish
        self._count_finish(finish)
        answer = self._dialect.whole(generation, finish)
        return await host.send(self._connection, self._request, answer, self._fault)
