"""What thousands of strangers can make the sidecar hold, under a limit of the kernel's: over it, it would die."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.program import Program, program
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("prlimit") is None and not os.environ.get("CI"), reason="the limit is set by prlimit (util-linux)"
    ),
]

LIMIT_MIB = 256
"""Half of what `deploy/base` gives the sidecar."""
STRANGERS = 4000
FIELD = b"%c: " + b"x" * 8000 + b"\r\n"
HALF_A_HEAD = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"".join(FIELD % letter for letter in b"ABCDEFG")
"""56 KiB that might yet become one."""
PIPELINED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    + (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + FIELD % b"A" + b"\r\n") * 100
)
"""A request that is answered late, and many large heads behind it."""
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@contextmanager
def flood(running: Program, count: int, what: bytes) -> Iterator[list[socket.socket]]:
    """Send it on so many connections, as much as is taken of it, in turns."""
    strangers = []
    try:
        for _ in range(count):
            stranger = socket.create_connection(("127.0.0.1", running.port))
            stranger.setblocking(False)
            strangers.append(stranger)
        rest = dict.fromkeys(strangers, memoryview(what))
        for _ in range(20):
            for stranger, unsent in list(rest.items()):
                try:
                    rest[stranger] = unsent[stranger.send(unsent[:16384]) :]
                except BlockingIOError:
                    continue
                except ConnectionError:
                    del rest[stranger]
            assert running.get("/livez")[0] == 200
        yield strangers
    finally:
        for stranger in strangers:
            stranger.close()


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < STRANGERS + 1000:
        pytest.skip(f"needs {STRANGERS + 1000} file descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@LOOPS
def test_g74_heads_without_an_end_hold_little_however_many(tmp_path: Path, loop: str) -> None:
    """No key is needed to send one. It was 582 MiB."""
    limited = ("prlimit", f"--data={LIMIT_MIB * 2**20}")
    with program(tmp_path, free_port(), ready=False, wrapper=limited, WINGS_EVENT_LOOP=loop) as running:
        before = running.resident_mib
        with flood(running, STRANGERS, HALF_A_HEAD):
            print(f"{loop}: {running.most_resident_mib - before:+.0f} MiB for {STRANGERS} unfinished heads")
            assert running.most_resident_mib - before < 200
            assert running.metric('wings_api_errors_total{code="overloaded"}') > STRANGERS / 2
            assert running.metric('wings_api_errors_total{code="internal_error"}') == 0
        deadline = time.monotonic() + 60
        while running.descriptors > 100:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@LOOPS
def test_g74_requests_that_wait_behind_one_hold_little_too(tmp_path: Path, loop: str) -> None:
    limited = ("prlimit", f"--data={LIMIT_MIB * 2**20}")
    engine = socket.create_server(("127.0.0.1", 0), backlog=512)  # takes everything, and says nothing
    with contextlib.closing(engine):
        port = engine.getsockname()[1]
        with program(tmp_path, port, ready=False, wrapper=limited, WINGS_EVENT_LOOP=loop) as running:
            before = running.resident_mib
            with flood(running, 500, PIPELINED):
                print(f"{loop}: {running.most_resident_mib - before:+.0f} MiB for 500 clients with 800 KiB each")
                assert running.most_resident_mib - before < 150
                assert running.get("/livez")[0] == 200
