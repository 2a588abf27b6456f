"""Faults injected as the kernel gives them, into the sidecar as a program; the groups tell them with stand-ins."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.program import Program, fake_engine_program, program
from tests.faults.scene import STREAM
from tests.mounts import as_root, tmpfs
from tests.ports import free_port

HERE = Path(__file__).parent
DAY = 86_400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@pytest.fixture
def engine_port() -> Iterator[int]:
    port = free_port()
    with fake_engine_program(port):
        yield port


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def hostile_kernel(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None and not os.environ.get("CI"):
        pytest.skip("what is preloaded is compiled: needs cc")
    library = tmp_path_factory.mktemp("preloaded") / "hostile_kernel.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", library, HERE / "hostile_kernel.c", "-ldl"], check=True)
    return str(library)


def ends(running: Program, within: float = 60.0) -> int:
    """Return the exit code after a SIGTERM."""
    running.process.send_signal(signal.SIGTERM)
    return running.process.wait(within)


@LOOPS
def test_g72_a_volume_that_hangs_holds_up_neither_an_answer_nor_the_end(
    volume: Path, tmp_path: Path, engine_port: int, hostile_kernel: str, loop: str
) -> None:
    hanging = tmp_path / "hanging"
    environ = {"LD_PRELOAD": hostile_kernel, "HANG_UNDER": str(volume), "HANG_WHILE": str(hanging)}
    with program(volume, engine_port, WINGS_EVENT_LOOP=loop, **environ) as running:  # type: ignore[arg-type]
        hanging.touch()
        time.sleep(1.5)
        for path in ("/livez", "/readyz", "/v1/models", "/metrics"):
            assert running.get(path)[0] == 200
        # One look, one publication: those that hang are not asked again.
        threads = len(os.listdir(f"/proc/{running.process.pid}/task"))  # noqa: PTH208
        time.sleep(1.0)
        assert len(os.listdir(f"/proc/{running.process.pid}/task")) <= threads + 1  # noqa: PTH208
        assert ends(running) == 0


def test_e61_the_wall_clock_jumps_a_day_back_and_two_forth(
    volume: Path, tmp_path: Path, engine_port: int, hostile_kernel: str
) -> None:
    off_by, log = tmp_path / "off_by", tmp_path / "log"
    environ = {"LD_PRELOAD": hostile_kernel, "CLOCK_OFF_BY": str(off_by), "WINGS_ACCESS_LOG": "true"}
    with log.open("wb") as output, program(volume, engine_port, stdout=output.fileno(), **environ) as running:  # type: ignore[arg-type]
        for jump in (-DAY, DAY):
            off_by.write_text(str(jump))
            assert running.get("/v1/models")[0] == 200
            assert 0 <= running.health()["since_seconds"] < 60
            assert 0 <= running.metric("wings_engine_state_age_seconds") < 60
            time.sleep(0.8)  # a probe, and the access log's line
            assert running.health()["state"] == "ready"
        assert running.metric('wings_request_duration_seconds_bucket{le="10.0",route="/v1/models"}') == 2
        assert ends(running) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    offsets = {
        round((datetime.fromisoformat(line["time"]) - datetime.now(UTC)).total_seconds() / DAY) for line in lines
    }
    assert offsets == {-1, 0, 1}
    durations = [line["duration_seconds"] for line in lines if "duration_seconds" in line]
    assert len(durations) == 2
    assert all(0 <= duration < 10 for duration in durations)


@LOOPS
@pytest.mark.parametrize("limit", ["", "50"])
def test_a14_a_minute_of_silence_between_tokens(
    volume: Path, tmp_path: Path, hostile_kernel: str, loop: str, limit: str
) -> None:
    """By the sidecar's clock. Nothing of ours acts in it; with a limit the same minute ends the stream."""
    ahead_by, port = tmp_path / "ahead_by", free_port()
    environ = {"LD_PRELOAD": hostile_kernel, "CLOCK_AHEAD_BY": str(ahead_by), "WINGS_IDLE_TIMEOUT_SECONDS": limit}
    body = json.dumps({**STREAM, "max_tokens": 3})
    with (
        fake_engine_program(port, token_seconds="inf"),
        program(volume, port, WINGS_EVENT_LOOP=loop, **environ) as running,  # type: ignore[arg-type]
    ):
        client = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        client.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = client.getresponse()
        received = answer.readline() + answer.readline()
        before = running.metric("wings_engine_state_age_seconds")
        ahead_by.write_text("60")
        assert running.metric("wings_engine_state_age_seconds") >= before + 60
        if not limit:
            time.sleep(1.0)  # what was due had its turn
            fake = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            fake.request("POST", "/__fake__", json.dumps({"do": "terminate"}))  # as vLLM does: its streams end whole
            assert fake.getresponse().status == 200
            fake.close()
        with contextlib.suppress(http.client.IncompleteRead):
            while piece := answer.read1():
                received += piece
        client.close()
    *events, last = received.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"data: {") and b"error" not in event for event in events), events
    assert (b'"code": "upstream_timeout"' in last) == bool(limit)
    assert (last == b"data: [DONE]") == (not limit)


@LOOPS
def test_g72_nobody_reads_our_output(volume: Path, engine_port: int, loop: str) -> None:
    reader, writer = os.pipe()
    try:
        environ = {"WINGS_EVENT_LOOP": loop, "WINGS_ACCESS_LOG": "true"}
        with program(volume, engine_port, stdout=writer, **environ) as running:  # type: ignore[arg-type]
            # A pipe holds 64 KiB, a line of the access log some 300 bytes.
            assert [running.get("/v1/models")[0] for _ in range(400)] == [200] * 400
            assert running.get("/livez")[0] == 200
            assert ends(running) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_g73_the_disk_of_our_output_is_full(volume: Path, tmp_path: Path, engine_port: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with (
        tmpfs(disk, size="16k"),
        (disk / "log").open("wb") as log,
        program(volume, engine_port, stdout=log.fileno(), WINGS_ACCESS_LOG="true") as running,
    ):
        assert [running.get("/v1/models")[0] for _ in range(100)] == [200] * 100
        deadline = time.monotonic() + 40
        while not running.metric("wings_log_dropped_lines_total"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert ends(running) == 0


@LOOPS
def test_g71_more_clients_than_descriptors(volume: Path, engine_port: int, loop: str) -> None:
    few = ("prlimit", "--nofile=128:128")
    with program(volume, engine_port, wrapper=few, WINGS_EVENT_LOOP=loop) as running:
        clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(300)]
        assert running.get("/livez")[0] == 200
        assert running.descriptors < 128
        deadline = time.monotonic() + 40
        while running.metric('wings_client_connections_closed_total{reason="evicted"}') <= 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        before = running.cpu_seconds
        time.sleep(1.0)
        assert running.cpu_seconds - before < 0.5  # nobody asks the kernel again and again
        for client in clients:
            client.close()
        assert running.get("/v1/models")[0] == 200


def test_b33_two_sidecars_on_one_volume(volume: Path, engine_port: int) -> None:
    script = volume / "start_command.sh"
    with program(volume, engine_port) as first:
        published = script.read_bytes()
        (volume / "hold").write_text("the first one's streams\n")
        with program(volume, engine_port, MODEL_PATH="/models/other", ready=False) as second:
            second.until(lambda body: body["reason"] == "volume_in_use" or body["state"] == "ready")
            time.sleep(0.5)
            assert second.get("/startupz")[0] == 503
            assert script.read_bytes() == published
            assert (volume / "hold").exists()
            first.process.kill()
            first.process.wait()
            deadline = time.monotonic() + 40
            while second.get("/startupz")[0] != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert b"/models/other" in script.read_bytes()


def test_e58_as_process_number_1(volume: Path, engine_port: int) -> None:
    """The kernel drops a signal to process number 1 of a namespace that has no handler for it."""
    as_root("true")
    with program(volume, engine_port, wrapper=("unshare", "--pid", "--fork", "--kill-child")) as running:
        pid = running.process.pid
        inner = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        assert Path(f"/proc/{inner}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1] == "1"
        os.kill(inner, signal.SIGTERM)
        assert running.process.wait(60) == 0
