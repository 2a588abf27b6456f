"""Serving requests: picks the answer, strikes with the faults, makes the tokens, keeps the record."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterable

from tests.fake import faults, pages
from tests.fake.counters import Counters
from tests.fake.dialect import CORE_DIED, Answer, Dialect, Generation, compact, wants_close
from tests.fake.llamacpp import Llamacpp
from tests.fake.logs import Log, Output
from tests.fake.run import Run
from tests.fake.settings import FakeSettings, Fault, Flavour, Foreign, Stop
from tests.fake.sglang import Sglang
from tests.fake.vllm import Vllm
from tests.fake.wire import KEPT_BYTES, Connection, Outcome, Request

_DIALECTS: dict[Flavour, type[Dialect]] = {
    Flavour.VLLM: Vllm,
    Flavour.SGLANG: Sglang,
    Flavour.LLAMACPP: Llamacpp,
}


class Service:
    """The engine behind its socket, without its life: what it counts, and how it answers each request."""

    def __init__(
        self, settings: FakeSettings, write: Callable[[Output], None], leave: Callable[[int], Awaitable[None]]
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.log = Log(settings, self.counters)
        self.requests: list[Request] = []
        # Set by the owner: 503 while True, what SIGTERM began, why generations end early ("abort", "dead").
        self.loading = False
        self.stopping: Stop | None = None
        self.ending = ""
        self._write_log = write
        self.leave = leave
        self._struck = 0
        self._health_calls = 0
        self._pauses: set[asyncio.Future[None]] = set()
        self._watchers: set[asyncio.Future[None]] = set()
        self.slots = asyncio.Semaphore(settings.max_num_seqs)

    @property
    def dialect(self) -> Dialect:
        return _DIALECTS[self.settings.flavour](self.settings, self.counters)

    def changed(self) -> None:
        """Wake whoever waits for the record to change."""
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def change(self) -> None:
        """Wait for the next change of the record or of a gauge."""
        watcher = asyncio.get_running_loop().create_future()
        self._watchers.add(watcher)
        try:
            await watcher
        finally:
            self._watchers.discard(watcher)

    def emit(self, lines: Iterable[Output]) -> None:
        for line in lines:
            self._write_log(line)

    def end_generations(self, why: str) -> None:
        """End every generation before its next token: "abort" or "dead"."""
        self.ending = why
        for pause in self._pauses:
            if not pause.done():
                pause.set_result(None)

    async def pause(self, seconds: float) -> None:
        """Sleep, for ever if `seconds` is inf; `end_generations` cuts it short."""
        if seconds <= 0 or self.ending:
            return
        loop = asyncio.get_running_loop()
        pause = loop.create_future()
        timer = None if seconds == float("inf") else loop.call_later(seconds, _finish, pause)
        self._pauses.add(pause)
        try:
            await pause
        finally:
            self._pauses.discard(pause)
            if timer is not None:
                timer.cancel()

    async def serve(self, connection: Connection, request: Request) -> bool:
        """Answer one request whose head was read; return True if the connection may carry another."""
        self.requests.append(request)
        self.changed()
        try:
            keep = await self._serve(connection, request)
        except (asyncio.CancelledError, ConnectionError):
            if connection.peer.closed_by_peer:
                request.outcome = Outcome.LEFT
            elif request.outcome is Outcome.OPEN:
                request.outcome = Outcome.ABORTED
            raise
        finally:
            request.ended_at = time.monotonic()
            request.body = request.body[:KEPT_BYTES]
            self.changed()
        if request.outcome is Outcome.OPEN:
            request.outcome = Outcome.DONE
        self.changed()
        return keep and not wants_close(request)

    async def _serve(self, connection: Connection, request: Request) -> bool:
        fault = self._fault(request)
        if fault is Fault.EARLY_413:
            answer = self.dialect.error(413, "Request body too large")
            request.headers = (*request.headers, ("connection", "close"))
            await self.send(connection, request, answer)
            await connection.linger()
            return False
        await connection.read_body(request)
        if fault is not None:
            request.outcome = Outcome.FAULT
        if self.stopping is Stop.ABORT:
            # Seen on vLLM: accepted, then reset, until the port is closed.
            connection.reset()
            return False
        if fault in faults.BEFORE:
            await faults.instead(fault, connection, self.settings.drip_seconds)
            return False
        if self.settings.foreign is not Foreign.NO:
            return await self.send(connection, request, pages.foreign(self.settings.foreign, request.path))
        if self.loading:
            return await self.send(connection, request, self.dialect.loading())
        if fault is Fault.STATUS:
            error = self.dialect.error(self.settings.fault_status, "The engine is overloaded, try again later.")
            retry = ("retry-after", self.settings.fault_retry_after)
            answer = Answer(error.status, error.body, error.content_type, (*error.headers, retry))
            return await self.send(connection, request, answer)
        send = functools.partial(self.send, fault=fault)
        if request.path in self.dialect.health_paths and request.method == "GET":
            return await self._health(connection, request, send)
        if request.path == "/metrics" and request.method in {"GET", "HEAD"}:
            return await pages.metrics(self.settings, self.counters, self.dialect, connection, request, send)
        result = self.dialect.answer(request)
        if isinstance(result, Generation):
            return await self._generate(connection, request, result, fault)
        return await send(connection, request, result)

    def _fault(self, request: Request) -> Fault | None:
        settings = self.settings
        struck = settings.fault_times is not None and self._struck >= settings.fault_times
        if settings.fault is None or struck or not {request.path, "*"} & set(settings.fault_paths):
            return None
        self._struck += 1
        return settings.fault

    def rearm(self) -> None:
        """Count `fault_times` anew."""
        self._struck = 0

    async def _health(self, connection: Connection, request: Request, send: pages.Send) -> bool:
        self._health_calls += 1
        if self.ending == "dead" or self.stopping is Stop.DRAIN:
            return await send(connection, request, self.dialect.health(503))
        await self.pause(self.settings.health_seconds)
        return await pages.health(self.settings, self.dialect, connection, request, self._health_calls, send)

    async def send(self, connection: Connection, request: Request, answer: Answer, fault: Fault | None = None) -> bool:
        """Write a whole answer; return True if the connection may carry another request."""
        if fault in {Fault.GZIP, Fault.GZIP_TRUNCATED}:
            answer = faults.zipped(answer, whole=fault is Fault.GZIP)
        if fault is Fault.FLOOD_1XX:
            await faults.interim(connection, self.settings.fault_count)
        head = self.dialect.head(answer, request)
        body = faults.chunk(answer.body) + b"0\r\n\r\n" if answer.chunked else answer.body
        self.answered(request, answer.status)
        if fault is Fault.SLOW_HEADERS:
            await faults.drip(connection, head, self.settings.drip_seconds)
            head = b""
        if fault in faults.WITHIN - {Fault.HUGE_EVENT, Fault.STALL}:
            connection.write(head + body[: len(body) // 2])
            (connection.reset if fault is Fault.RST else connection.close)()
            return False
        connection.write(head + (b"" if request.method == "HEAD" else body))
        await connection.drain()
        if fault in faults.AFTER:
            await faults.afterwards(fault, connection, self.settings.drip_seconds)
        return b"onnection: close" not in head

    def answered(self, request: Request, status: int) -> None:
        request.status = status
        request.answered_at = time.monotonic()
        key = (request.path, request.method, status)
        self.counters.http[key] = self.counters.http.get(key, 0) + 1
        self.emit(self.log.access(request, status))
        self.changed()

    async def _generate(
        self, connection: Connection, request: Request, generation: Generation, fault: Fault | None
    ) -> bool:
        if self.stopping is Stop.DRAIN_REFUSING:
            refusal = self.dialect.error(500, "cannot schedule new futures after shutdown")
            return await self.send(connection, request, Answer(500, refusal.body, vary=False))
        if self.ending == "dead":
            return await self.send(connection, request, self.dialect.error(500, CORE_DIED))
        return await Run(self, connection, request, generation, fault).run()

    def as_json(self) -> dict[str, object]:
        return {
            "settings": self.settings.as_json(),
            "running": self.counters.running,
            "waiting": self.counters.waiting,
            "loading": self.loading,
            "stopping": self.stopping,
            "requests": [request.as_json() for request in self.requests],
        }


def control_answer(status: int, value: object) -> bytes:
    body = compact(value)
    return b"HTTP/1.1 %d Control\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def _finish(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)
