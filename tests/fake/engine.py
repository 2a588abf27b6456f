"""The fake engine's life: its port, its start, its end, and the handle a test holds it by."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from tests.fake.logs import Output
from tests.fake.service import Service, control_answer
from tests.fake.settings import STOP_OF, FakeSettings, Stop
from tests.fake.wire import Connection, MalformedError, Peer, Request
from tests.ports import free_port

CONTROL = "/__fake__"
_NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\n"
    b"Invalid HTTP request received."
)


class FakeEngine:
    """An engine in this process: `async with FakeEngine(FakeSettings(...)) as engine`.

    Switches are fields of `engine.settings`, changeable at any time; what arrived stands in `engine.requests` and
    `engine.peers`; what it printed in `engine.printed`. `until` waits for any of it without polling.
    """

    def __init__(
        self,
        settings: FakeSettings | None = None,
        *,
        write: Callable[[Output], None] | None = None,
        leave: Callable[[int], None] | None = None,
    ) -> None:
        self.settings = settings or FakeSettings()
        self.printed = ""
        self.port = self.settings.port
        self.control_port: int | None = None
        self.peers: list[Peer] = []
        # Set when the engine "process" ended; -15 and so on for a signal.
        self.exit_code: int | None = None
        self.ready = asyncio.Event()
        self._service = Service(self.settings, write or self._print, self._exit)
        self._leave = leave
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._control_server: asyncio.Server | None = None
        self._loaded = asyncio.Event()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures: list[BaseException] = []

    # What a test reads.

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.port}"

    @property
    def requests(self) -> list[Request]:
        return self._service.requests

    @property
    def running(self) -> int:
        """Generations that make tokens now."""
        return self._service.counters.running

    @property
    def waiting(self) -> int:
        return self._service.counters.waiting

    @property
    def listening(self) -> bool:
        return self._server is not None

    @property
    def stopping(self) -> bool:
        """SIGTERM came and is being obeyed."""
        return self._service.stopping is not None

    @property
    def open_connections(self) -> int:
        return sum(peer.closed_at is None for peer in self.peers)

    async def until(self, condition: Callable[[], object], seconds: float = 40.0) -> None:
        """Wait until `condition()` is true; TimeoutError after `seconds`. Checked at every change, without polling."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._service.change()

    def forget(self) -> None:
        """Empty the record, and count `fault_times` anew."""
        self.requests.clear()
        self.peers[:] = [connection.peer for connection in self._connections]
        self._service.rearm()

    def print_line(self, text: str) -> None:
        """Print a line the engine's log would not have of itself."""
        self._service.emit([Output(text + "\n")])

    def _print(self, output: Output) -> None:
        self.printed += output.text
        self._service.changed()

    # Its life.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Take the port and begin to load; returns when ready if the settings name no time for the load."""
        self.exit_code = None
        service = self._service
        service.loading, service.stopping, service.ending = True, None, ""
        self._loaded.clear()
        if self.settings.control_port is not None and self._control_server is None:
            self._control_server = await asyncio.get_running_loop().create_server(
                self._connection, self.settings.host, self.settings.control_port
            )
            self.control_port = self._control_server.sockets[0].getsockname()[1]
        # As vLLM: bound at once, listening only when loaded, so that a connection is refused.
        self._socket = bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        # Not the kernel's choice: who restarts comes back to a port that nobody was given meanwhile.
        self.port = self.port or free_port()
        bound.bind((self.settings.host, self.port))
        if self.settings.boot_seconds or self.settings.loading_seconds:
            self._spawn(self._boot(bound), "fake-engine-boot")
        else:
            await self._boot(bound)

    async def _boot(self, bound: socket.socket) -> None:
        settings, service = self.settings, self._service
        lines = list(service.log.start(self.port))
        for line in lines:
            service.emit([line])
            if settings.boot_seconds != float("inf"):
                await self._load_for(settings.boot_seconds / len(lines))
        if settings.boot_seconds == float("inf"):
            await self._loaded.wait()
        self._server = await asyncio.get_running_loop().create_server(self._connection, sock=bound, backlog=2048)
        service.changed()
        await self._load_for(settings.loading_seconds)
        service.loading = False
        service.emit(service.log.ready(self.port))
        self.ready.set()
        service.changed()
        self._spawn(self._statistics(), "fake-engine-statistics")

    async def _load_for(self, seconds: float) -> None:
        if seconds == float("inf"):
            await self._loaded.wait()
        elif seconds:
            try:
                async with asyncio.timeout(seconds):
                    await self._loaded.wait()
            except TimeoutError:
                return

    async def finish_loading(self) -> None:
        """Cut the load short; returns when the engine is ready."""
        self._loaded.set()
        await self.ready.wait()

    async def _statistics(self) -> None:
        while True:
            await asyncio.sleep(self.settings.stats_seconds)
            self._service.emit(self._service.log.statistics(self.settings.stats_seconds))

    async def terminate(self) -> None:
        """What SIGTERM does, to the end of it; the process has ended then, unless it ignores the signal."""
        service, stop = self._service, self.settings.stop or STOP_OF[self.settings.flavour]
        if stop is Stop.IGNORE or service.stopping is not None:
            return
        if not self.ready.is_set():
            await self._exit(-15)
            return
        service.stopping = stop
        service.emit(service.log.stop(stop))
        if stop is Stop.ABORT:
            service.end_generations("abort")
        if stop is not Stop.NOW:
            await self.until(lambda: self.running + self.waiting == 0, float("inf"))
        await asyncio.sleep(self.settings.stop_seconds)
        service.emit(service.log.stopped())
        await self._exit(self.settings.exit_code)

    async def crash(self, code: int = -9) -> None:
        """End as by SIGKILL: every connection reset, nothing said."""
        await self._exit(code)

    async def kill_core(self) -> None:
        """Die as vLLM's API server does when its core was killed: error events, then 503 and 500 for good.

        After `core_death_seconds`, unless that is inf, the process ends with exit code 0.
        """
        self._service.emit(self._service.log.core_died())
        self._service.end_generations("dead")
        await self.until(lambda: self.running + self.waiting == 0)
        if self.settings.core_death_seconds != float("inf"):
            await asyncio.sleep(self.settings.core_death_seconds)
            await self._exit(0)

    async def restart(self) -> None:
        """Start again on the same port, as a restarted container does; counters and record go on."""
        await self._down()
        await self.start()

    async def close(self) -> None:
        """Close everything, and raise what went wrong inside, if anything did."""
        await self._down()
        if self._control_server is not None:
            self._control_server.close()
        if self._failures:
            raise self._failures[0]

    async def _exit(self, code: int) -> None:
        self.exit_code = code
        if self._leave is not None:
            self._leave(code)
        await self._down()
        self._service.changed()

    async def _down(self) -> None:
        self.ready.clear()
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        self._server = self._socket = None
        for connection in list(self._connections):
            connection.reset()
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Its connections.

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._keep(asyncio.get_running_loop().create_task(work, name=name))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    def _connection(self) -> Connection:
        return Connection(self._serve, self._service.changed)

    async def _serve(self, connection: Connection) -> None:
        self._keep(connection.task)
        self._connections.add(connection)
        connection.peer.number = len(self.peers)
        self.peers.append(connection.peer)
        self._service.changed()
        try:
            await self._requests(connection)
        except ConnectionError:
            pass
        except (MalformedError, ValueError):
            connection.write(_NOT_HTTP)
        finally:
            connection.close()
            self._connections.discard(connection)

    async def _requests(self, connection: Connection) -> None:
        keep = True
        while keep:
            request = await connection.read_head(len(self.requests), self.settings.keep_alive_seconds)
            if request is None:
                return
            if request.path == CONTROL:
                await connection.read_body(request)
                connection.write(self._control(request))
            else:
                keep = await self._service.serve(connection, request)

    def _control(self, request: Request) -> bytes:
        """Answer the control endpoint: GET shows all; POST {"set": {...}, "do": "..."} changes and acts."""
        try:
            asked = json.loads(request.body) if request.method == "POST" else {}
            self.settings.change(asked.get("set", {}))
            if (deed := asked.get("do")) is not None:
                self._do(deed, asked)
        except ValueError as error:
            return control_answer(400, {"error": str(error)})
        peers = [peer.as_json() for peer in self.peers]
        state = {**self._service.as_json(), "ready": self.ready.is_set(), "port": self.port, "connections": peers}
        return control_answer(200, {**state, "now": time.monotonic()})

    def _do(self, deed: str, asked: dict[str, Any]) -> None:
        match deed:
            case "terminate":
                self._spawn(self.terminate(), "fake-engine-terminate")
            case "crash":
                self._spawn(self.crash(int(asked.get("code", -9))), "fake-engine-crash")
            case "kill_core":
                self._spawn(self.kill_core(), "fake-engine-kill-core")
            case "finish_loading":
                self._loaded.set()
            case "forget":
                self.forget()
            case "print":
                self.print_line(str(asked["text"]))
            case _:
                raise ValueError(f"cannot do {deed!r}")
