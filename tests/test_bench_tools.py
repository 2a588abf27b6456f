"""The load generator sees what it says it sees: every altered, lost or doubled byte, in both directions."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.bench.tools import Load, Tools, running_tools
from tests.bench.workloads import Workload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load tools are compiled: needs cc"),
]

Change = Callable[[bytes], bytes]

PLAIN = Workload(name="plain", title="", connections=2, seconds=0.3, warmup_seconds=0.05)
STREAMS = Workload(name="streams", title="", connections=2, seconds=0.3, warmup_seconds=0.05, events=5)
PACED = Workload(
    name="paced", title="", connections=4, seconds=0.3, warmup_seconds=0.05, events=100, interval_us=5000, ticks=True
)
SAME = Workload(name="same", title="", connections=2, seconds=0.3, warmup_seconds=0.05, same=True)
TWO_WRITES = Workload(name="two writes", title="", connections=2, seconds=0.3, warmup_seconds=0.05, two_writes=True)
UPLOAD = Workload(name="upload", title="", connections=2, seconds=0.3, warmup_seconds=0.05, upload_bytes=300_000)


def unchanged(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def relay(engine_port: int, *, up: Change = unchanged, down: Change = unchanged) -> AsyncIterator[int]:
    """A relay that passes every read through *up* or *down*; yields its port."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(change(data))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", engine_port)
        for pair in ((reader, engine_writer, up), (engine_reader, writer, down)):
            pumps.add(asyncio.create_task(pump(*pair)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def measured(workload: Workload, tmp_path: Path, *, up: Change = unchanged, down: Change = unchanged) -> Load:
    """What the load generator reports through a relay."""

    def load(tools: Tools, port: int) -> Load:
        return tools.load(workload, port, [os.getpid()])

    with running_tools(tmp_path, frozenset(os.sched_getaffinity(0))) as tools:
        async with relay(tools.engine_port, up=up, down=down) as port:
            return await asyncio.to_thread(load, tools, port)


@pytest.mark.parametrize(
    "workload", [PLAIN, SAME, TWO_WRITES, STREAMS, PACED, UPLOAD], ids=lambda workload: workload.name
)
async def test_what_passes_unchanged_is_counted_and_right(workload: Workload, tmp_path: Path) -> None:
    load = await measured(workload, tmp_path)
    assert (load["failed"], load["first_failure"]) == (0, "")
    assert load["events" if workload.events else "answers"] > 0
    assert load["cpu_seconds"] > 0


@pytest.mark.parametrize(("workload", "lengths", "ids"), [(PLAIN, 16, True), (SAME, 1, False)], ids=["differ", "same"])
async def test_requests_differ_as_a_clients_do_unless_they_are_to_be_the_same(
    workload: Workload, lengths: int, ids: bool, tmp_path: Path
) -> None:
    seen: list[bytes] = []

    def note(data: bytes) -> bytes:
        seen.append(data)
        return data

    load = await measured(workload, tmp_path, up=note)
    wire = b"".join(seen)
    requests = wire.count(b"POST /v1/chat/completions")
    assert requests >= load["answers"] > 16
    assert len(set(re.findall(rb"Content-Length: (\d+)\r\n", wire))) == lengths
    assert len(set(re.findall(rb"X-Request-Id: ([0-9a-f]{32})\r\n", wire))) == (requests if ids else 0)


@pytest.mark.parametrize(
    ("workload", "change", "complaint"),
    [
        (PLAIN, lambda data: data.replace(b"200 OK", b"500 OK"), "the status is not 200"),
        (PLAIN, lambda data: data.replace(b'"stop"', b'"step"'), "the answer was altered"),
        (PLAIN, lambda data: data + b"x", "bytes follow the answer"),
        (STREAMS, lambda data: data.replace(b'"logprobs":null', b'"logprobs":nul1'), "an event was altered"),
        (STREAMS, lambda data: data.replace(b'00000003"}', b'00000004"}'), "an event was lost, doubled or moved"),
        (STREAMS, lambda data: data.replace(b"[DONE]", b"[DOME]"), "the end of the stream was altered"),
        (STREAMS, lambda data: data.replace(b"\r\n0\r\n\r\n", b"\r\n0\r\nx"), "the chunked framing is wrong"),
    ],
)
async def test_an_answer_that_was_changed_fails(
    workload: Workload, change: Change, complaint: str, tmp_path: Path
) -> None:
    load = await measured(workload, tmp_path, down=change)
    assert load["failed"] > 0
    assert load["first_failure"].startswith(complaint)


async def test_a_request_body_that_was_changed_fails(tmp_path: Path) -> None:
    load = await measured(UPLOAD, tmp_path, up=lambda data: data.replace(b'"}]}', b"'}]}"))
    assert load["failed"] > 0
    assert load["first_failure"].startswith("the status is not 200")
