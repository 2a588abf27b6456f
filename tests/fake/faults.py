"""The broken answers: each writes its bytes, and ends the connection where the fault is that it ends."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable

from tests.fake.dialect import Answer
from tests.fake.settings import FakeSettings, Fault
from tests.fake.wire import Connection

_SPARE = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\ncontent-type: text/plain\r\n\r\nnot your data"
_TEXT = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"

# Bytes of the heads that are wrong in themselves; the connection is closed after each.
_BROKEN: dict[Fault, bytes] = {
    Fault.CLOSE_IN_STATUS: b"HTTP/1.1 20",
    Fault.CLOSE_IN_HEADERS: b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-le",
    Fault.GARBAGE: bytes(range(256)) * 2,
    Fault.TLS: b"\x15\x03\x01\x00\x02\x02\x46",
    Fault.SSH: b"SSH-2.0-OpenSSH_9.6\r\n",
    Fault.BAD_LENGTH: _TEXT + b"content-length: abc\r\n\r\n{}",
    Fault.TWO_LENGTHS: _TEXT + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    Fault.LENGTH_AND_CHUNKED: _TEXT + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    Fault.NUL_HEADER: _TEXT + b"x-a: b\x00c\r\ncontent-length: 2\r\n\r\n{}",
    Fault.CR_HEADER: _TEXT + b"x-a: b\rc\r\ncontent-length: 2\r\n\r\n{}",
    Fault.MANY_HEADERS: _TEXT + b"".join(b"x-%d: y\r\n" % n for n in range(500)) + b"content-length: 2\r\n\r\n{}",
    Fault.SWITCH: b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x02hi",
    Fault.SHORT: _TEXT + b"content-length: 1000\r\n\r\n{}",
}

# Those that strike before the true answer, or in place of it; the others belong to a stream or come after it.
BEFORE = frozenset(
    {
        *_BROKEN,
        Fault.HANG,
        Fault.CLOSE,
        Fault.RESET,
        Fault.ENDLESS_STATUS,
    }
)
# In a stream they strike after so many events; on a whole answer at once.
WITHIN = frozenset(
    {
        Fault.FIN,
        Fault.RST,
        Fault.IN_CHUNK,
        Fault.BAD_CHUNK,
        Fault.STALL,
        Fault.ERROR_EVENT,
        Fault.EXIT,
        Fault.HUGE_EVENT,
    }
)
# On the connection, once the answer is out.
AFTER = frozenset({Fault.EXTRA, Fault.STRAY, Fault.CLOSE_AFTER})


async def instead(fault: Fault, connection: Connection, drip_seconds: float) -> None:
    """Answer with `fault`, one of BEFORE; returns when the connection is closed or was left."""
    if fault is Fault.HANG:
        await asyncio.Event().wait()
    elif fault is Fault.RESET:
        connection.reset()
    elif fault is Fault.ENDLESS_STATUS:
        connection.write(b"HTTP/1.1 200 ")
        while not connection.lost:
            connection.write(b"O" * 65536)
            await connection.drain()
            await asyncio.sleep(drip_seconds)
    else:
        connection.write(_BROKEN.get(fault, b""))
        connection.close()


async def interim(connection: Connection, count: int) -> None:
    """Write `count` answers 102, as a server may before its true one (RFC 9110 §15.2)."""
    for _ in range(0, count, 100):
        connection.write(b"HTTP/1.1 102 Processing\r\n\r\n" * min(100, count))
        await connection.drain()
        await asyncio.sleep(0)


async def drip(connection: Connection, data: bytes, seconds: float) -> None:
    """Write `data` one byte at a time."""
    for index in range(len(data)):
        connection.write(data[index : index + 1])
        await asyncio.sleep(seconds)


def zipped(answer: Answer, *, whole: bool) -> Answer:
    """Return the answer gzipped; not `whole`: the last bytes of the gzip stream are missing."""
    body = gzip.compress(answer.body, mtime=0)
    encoding = ("content-encoding", "gzip")
    kept = body if whole else body[: len(body) // 2]
    return Answer(answer.status, kept, answer.content_type, (*answer.headers, encoding), answer.early)


async def afterwards(fault: Fault | None, connection: Connection, drip_seconds: float) -> None:
    """Do to the idle connection what `fault`, one of AFTER, does once the answer is out."""
    if fault is Fault.CLOSE_AFTER:
        connection.close()
        return
    if fault is Fault.STRAY:
        await asyncio.sleep(drip_seconds)
    connection.write(_SPARE)


async def within(
    fault: Fault,
    connection: Connection,
    settings: FakeSettings,
    error_event: bytes,
    leave: Callable[[int], Awaitable[None]],
) -> bool:
    """Strike in the middle of a stream; return True if it goes on."""
    match fault:
        case Fault.FIN:
            connection.close()
        case Fault.RST:
            connection.reset()
        case Fault.IN_CHUNK:
            connection.write(b'f8\r\ndata: {"id":"chatcmpl-')
            connection.close()
        case Fault.BAD_CHUNK:
            connection.write(b"zz\r\ndata: {}\n\n\r\n")
            connection.close()
        case Fault.ERROR_EVENT:
            connection.write(chunk(error_event) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        case Fault.EXIT:
            await leave(settings.exit_code)
        case Fault.HUGE_EVENT:
            connection.write(chunk(b'data: {"huge":"' + b"x" * settings.huge_bytes + b'"}\n\n'))
            await connection.drain()
            return True
        case _:
            raise AssertionError(f"{fault} does not strike within a stream")
    return False


def chunk(data: bytes) -> bytes:
    """Return `data` as one chunk of HTTP/1.1 (RFC 9112 §7.1), the size in lower case as uvicorn writes it."""
    return b"%x\r\n%b\r\n" % (len(data), data)
