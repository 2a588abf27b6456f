"""Both ends of the byte path, the bytes in the test's hands: scripted engine, raw client, proxy between.

Nothing here uses the code under test to read or write HTTP.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from aiohttp import web

from tests.ports import free_port
from wings_proxy.proxy.access_log import AccessLog
from wings_proxy.proxy.admission import ForwardSettings
from wings_proxy.proxy.api_errors import ApiError
from wings_proxy.proxy.api_keys import Authorizer
from wings_proxy.proxy.exchange import UpstreamFault
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.proxy.inflight import Inflight
from wings_proxy.proxy.request_metrics import RequestMetrics
from wings_proxy.proxy.upstream import Pool
from wings_proxy.server.client_connection import ClientConnection
from wings_proxy.server.runner import Runner

ROUTE = "/v1/chat/completions"
OWN = "/own"
"""What aiohttp answers."""
OWN_BROKEN = OWN + "/broken"


@dataclass
class Message:
    """A request or an answer as it lay on the wire."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    """The sizes of a chunked body's chunks, as written, extensions and all."""
    complete: bool = True

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def all(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def one(self, name: bytes) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name!r} repeated: {values}"
        return values[0] if values else None


async def read_head(reader: asyncio.StreamReader) -> Message:
    block = await reader.readuntil(b"\r\n\r\n")
    start, *lines = block[:-4].split(b"\r\n")
    fields = []
    for line in lines:
        name, colon, value = line.partition(b": ")
        assert colon, line
        fields.append((name, value))
    return Message(start, fields)


async def read_body(reader: asyncio.StreamReader, message: Message, *, until_close: bool) -> None:
    """Read a body into *message*; a cut one is kept as far as it came, `complete` is False then."""
    try:
        if message.one(b"Transfer-Encoding") == b"chunked":
            assert message.one(b"Content-Length") is None
            while True:
                line = (await reader.readuntil(b"\r\n"))[:-2]
                message.chunks.append(line)
                size = int(line.split(b";")[0], 16)
                if not size:
                    assert await reader.readexactly(2) == b"\r\n"
                    return
                message.body += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
        elif (length := message.one(b"Content-Length")) is not None:
            message.body = await reader.readexactly(int(length))
        elif until_close:
            while data := await reader.read(65536):
                message.body += data
    except asyncio.IncompleteReadError as error:
        message.body += error.partial
        message.complete = False
    except ConnectionError:
        message.complete = False


class EngineSide:
    """One connection as the engine sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.requests: list[Message] = []

    async def head(self) -> Message:
        request = await read_head(self.reader)
        self.requests.append(request)
        return request

    async def request(self) -> Message:
        request = await self.head()
        await read_body(self.reader, request, until_close=False)
        return request

    async def send(self, data: bytes) -> None:
        """Send; a connection that was seen to end is an error of the connection on either loop."""
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"ok", *, status: bytes = b"200 OK", fields: bytes = b"") -> None:
        await self.send(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body))

    async def start_events(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    async def event(self, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        await self.send(b"%x\r\n%b\r\n" % (len(event), event))

    async def gone(self) -> None:
        """Return when the proxy has closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[EngineSide], Awaitable[None]]


class ScriptedEngine:
    """Runs one script per connection, the last one again when they run out."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.connections: list[EngineSide] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[BaseException] = []

    async def start(self) -> None:
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        side = EngineSide(reader, writer)
        script = self.scripts[min(len(self.connections), len(self.scripts) - 1)]
        self.connections.append(side)
        try:
            await script(side)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the proxy closed: what most scripts end with
        except BaseException as error:
            self.failures.append(error)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for side in self.connections:
            side.writer.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.failures:
            raise self.failures[0]

    async def finished(self) -> None:
        """Return when the script of every connection has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def requests(self) -> list[Message]:
        return [request for side in self.connections for request in side.requests]


class Client:
    """One connection as the client sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send; a connection that was seen to end is an error of the connection on either loop."""
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, body: bytes = b"{}", *, fields: bytes = b"", target: bytes = ROUTE.encode()) -> None:
        head = b"POST %b HTTP/1.1\r\nHost: proxy\r\nContent-Length: %d\r\n%b\r\n" % (
            target,
            len(body),
            fields,
        )
        await self.send(head + body)

    async def get(self, *, fields: bytes = b"", target: bytes = b"/v1/models", method: bytes = b"GET") -> None:
        await self.send(b"%b %b HTTP/1.1\r\nHost: proxy\r\n%b\r\n" % (method, target, fields))

    async def answer(self, *, head_request: bool = False) -> Message:
        message = await read_head(self.reader)
        if not (head_request or message.status in {204, 304} or message.status < 200):
            await read_body(self.reader, message, until_close=True)
        return message

    async def at_end(self) -> bool:
        """Whether the proxy has closed, with nothing more to read."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class OpenGate:
    """A gate that lets everything pass, or gives the same refusal to everyone."""

    refusal: ApiError | None = None
    asked: int = 0

    @property
    def open(self) -> bool:
        return self.refusal is None

    async def admit(self) -> ApiError | None:
        self.asked += 1
        return self.refusal


class Proxy:
    """The byte path behind aiohttp's server, without the rest of the program."""

    def __init__(self, engine: ScriptedEngine, forwarder: Forwarder, port: int, gate: OpenGate) -> None:
        self.engine = engine
        self.forwarder = forwarder
        self.metrics = forwarder.metrics
        self.inflight = forwarder.inflight
        self.pool = forwarder.pool
        self.gate = gate
        self.port = port
        self.runner: Runner
        self.faults: list[UpstreamFault] = []
        self.access_lines: list[str] = []
        self.clients: list[Client] = []

    async def client(self, *, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        client = Client(*await asyncio.open_connection(sock=sock))
        self.clients.append(client)
        return client

    @property
    def connections(self) -> list[ClientConnection]:
        """The clients' connections, the proxy's side of them."""
        server = self.runner.server
        return [] if server is None else [each for each in server.connections if isinstance(each, ClientConnection)]

    async def busy(self) -> None:
        """Return once a request is in flight."""
        async with asyncio.timeout(40):
            while not self.inflight.count:  # noqa: ASYNC110 - nobody but a test waits for this
                await asyncio.sleep(0)

    async def idle(self) -> None:
        """Return once no request is in flight."""
        async with asyncio.timeout(40):
            await self.inflight.drained()


@asynccontextmanager
async def proxy(
    *scripts: Script, authorize: Authorizer | None = None, keepalive_seconds: float = 75.0, **settings: object
) -> AsyncIterator[Proxy]:
    """Run a scripted engine and a proxy in front of it."""
    engine = ScriptedEngine(*scripts)
    await engine.start()
    loop = asyncio.get_running_loop()
    limits = replace(ForwardSettings(engine_port=engine.port), **settings)  # type: ignore[arg-type]
    pool = Pool(
        loop,
        limits.engine_port,
        connect_timeout_seconds=limits.connect_timeout_seconds,
        idle_seconds=4.0,
    )
    gate = OpenGate()
    faults: list[UpstreamFault] = []
    access_lines: list[str] = []
    forwarder = Forwarder(
        limits,
        pool=pool,
        inflight=Inflight(loop.time),
        metrics=RequestMetrics([ROUTE]),
        gate=gate,
        authorize=authorize,
        on_fault=faults.append,
        access_log=AccessLog(access_lines.append, form="json"),
    )

    async def own(request: web.BaseRequest) -> web.StreamResponse:
        if not request.raw_path.startswith(OWN):
            assert isinstance(request.protocol, ClientConnection)
            return await request.protocol.forward_in_turn(request, ROUTE)
        if request.raw_path == OWN_BROKEN:
            raise ZeroDivisionError
        await asyncio.sleep(0)
        return web.Response(text="ours")

    runner = Runner(
        web.Application(),
        forwarder,
        lambda target: None if target.startswith(OWN) else ROUTE,
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        lingering_time=1.0,
        keepalive_timeout=keepalive_seconds,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    assert runner.server is not None
    runner.server.request_handler = own
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    under_test = Proxy(engine, forwarder, runner.addresses[0][1], gate)
    under_test.runner = runner
    under_test.faults = faults
    under_test.access_lines = access_lines
    try:
        async with asyncio.timeout(60):
            yield under_test
    finally:
        for client in under_test.clients:
            client.close()
        await runner.cleanup()
        pool.close()
        await engine.stop()
