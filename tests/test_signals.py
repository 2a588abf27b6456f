"""How fast an end is seen, and how fast each side ends: signals, crashes and deaths, with real processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.pod import Pod
from tests.processes import catches
from tests.stream_client import to_the_end

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

RESTARTS = 3


async def seconds_until_failed(pod: Pod, pid: int | None) -> float:
    """SIGKILL `pid` of a ready pod; return how long until the sidecar's state was `failed`."""
    assert pid is not None
    seen = len(pod.changes)
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    await pod.sidecar.until(lambda: any(change.target == "failed" for change in pod.changes[seen:]), 40)
    failed = next(change for change in pod.changes[seen:] if change.target == "failed")
    assert failed.reason == "killed"
    return failed.at - killed_at


async def test_a_script_that_is_gone_is_known_at_once() -> None:
    """An out-of-memory kill takes the container's process 1 along: nothing is written, only the FIFO ends.

    That tells it: no probe comes for minutes.
    """
    async with Pod(WINGS_PROBE_INTERVAL_SECONDS="300") as pod:
        await pod.start()
        times = []
        for _ in range(RESTARTS):
            await pod.until_state("ready")
            times.append(await seconds_until_failed(pod, pod.engine.pid))
        await pod.until_state("ready")
        print(f"script gone -> failed, ms: {[round(1000 * seconds, 1) for seconds in times]}")
        pod.assert_clean()


async def test_a_crash_has_its_name_at_once() -> None:
    async with Pod(engine={"children": 1}, WINGS_PROBE_INTERVAL_SECONDS="300") as pod:
        await pod.start()
        times = []
        for _ in range(RESTARTS):
            await pod.until_state("ready")
            times.append(await seconds_until_failed(pod, pod.leader))
        print(f"engine killed -> failed, ms: {[round(1000 * seconds, 1) for seconds in times]}")
        await pod.until_state("ready")
        assert {end.code for end in pod.engine.exits} == {137}
        pod.assert_clean()


async def test_an_end_nobody_asked_for_is_a_crash_whatever_the_engine_says() -> None:
    """vLLM exits 0 after its core died; here somebody sends the engine, and not its container, a SIGTERM."""
    async with Pod() as pod:
        await pod.start()
        await pod.until_state("ready")
        assert pod.leader is not None
        os.kill(pod.leader, signal.SIGTERM)
        health = await pod.until(lambda body: body.get("restarts") == 1 and body["state"] == "ready")
        assert (health["last_failure"]["reason"], health["last_failure"]["exit_code"]) == ("exited", 0)
        assert [end.code for end in pod.engine.exits] == [1]
        pod.assert_clean()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_an_idle_pod_is_gone_as_fast_as_its_engine(loop: str) -> None:
    """Nothing is waited for: a drain would outlast the 30 s after which `terminate` kills."""
    stop, drain = {"stop_seconds": 1.0}, {"WINGS_DRAIN_SECONDS": "100"}
    async with Pod(engine=stop, WINGS_EVENT_LOOP=loop, **drain) as pod:
        await pod.start()
        await pod.until_state("ready")
        # A client that keeps its connection costs nothing.
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: pod\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        began = time.time()
        codes = await asyncio.gather(pod.engine.terminate(), pod.sidecar.terminate())
        ends = {container.name: container.exits[-1].at - began for container in (pod.engine, pod.sidecar)}
        print(f"SIGTERM -> gone, idle, s: {ends}")
        assert not any(codes)
        writer.close()
        await pod.engine.settled()
        pod.assert_clean()


async def test_sigterm_while_the_volume_is_missing() -> None:
    async with Pod() as pod:
        pod.volume.rmdir()
        pod.sidecar.start()
        health = await pod.until_state("waiting")
        assert health["reason"] in {"not_published", "volume_missing"}
        assert await pod.sidecar.terminate() == 0
        pod.assert_clean()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(second: signal.Signals) -> None:
    async with Pod(engine={"token_seconds": 0.05}, WINGS_DRAIN_SECONDS="100", WINGS_GRACE_PERIOD_SECONDS="300") as pod:
        await pod.start()
        before = await pod.until_state("ready")
        first = asyncio.Event()
        body = {"messages": [{"role": "user", "content": "count"}], "stream": True, "max_tokens": 2000}
        reading = asyncio.create_task(to_the_end(pod.port, body, first))
        await first.wait()
        pod.sidecar.signal(signal.SIGTERM)
        await pod.until_state("draining")
        await asyncio.sleep(0.6)  # sooner it would be taken for the first one's echo
        assert not pod.sidecar.exits
        pod.sidecar.signal(second)
        # Before the drain is over.
        await pod.sidecar.until(lambda: pod.sidecar.exits, 40)
        received, whole = await reading
        assert pod.sidecar.exits[0].code == 143
        # Cut, and honest about it.
        assert not whole
        assert b'"error"' in received
        assert b"[DONE]" not in received
        after = await pod.until_state("ready")
        assert after["run"] == before["run"]
        pod.assert_clean()


async def test_sighup_is_nothing_to_either_side() -> None:
    async with Pod() as pod:
        await pod.start()
        before = await pod.until_state("ready")
        pods = (pod.sidecar.pid, pod.engine.pid, pod.leader)
        for _ in range(3):
            pod.sidecar.signal(signal.SIGHUP)
            pod.engine.signal(signal.SIGHUP)
            await asyncio.sleep(0.1)
        after = await pod.health()
        assert (after["state"], after["run"]) == ("ready", before["run"])
        assert (pod.sidecar.pid, pod.engine.pid, pod.leader) == pods
        # The script still knows a SIGTERM when it sees one.
        assert await pod.engine.terminate() == 0
        await pod.until_state("starting")


async def test_a_frozen_sidecar_does_not_think_the_engine_dead() -> None:
    async with Pod(WINGS_PROBE_TIMEOUT_SECONDS="0.5") as pod:
        await pod.start()
        await pod.until_state("ready")
        path = pod.path
        pod.sidecar.signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        pod.sidecar.signal(signal.SIGCONT)
        await asyncio.sleep(1)
        assert (await pod.health())["state"] == "ready"
        assert pod.path == path, pod.story()
        status, _ = await pod.get("/livez")
        assert status == 200


WATCH_DIES = """
from wings_proxy.handover import volume
watch = volume.watch
async def dies(volume, emit, **options):
    seen = []
    def count(sample):
        emit(sample)
        seen.append(sample)
        if len(seen) == 2:
            raise RuntimeError("injected: the volume watch died")
    await watch(volume, count, **options)
volume.watch = dies
"""


async def test_the_process_ends_when_the_supervisor_does() -> None:
    """Never a zombie that answers 200 from memory."""
    async with Pod() as pod:
        (pod.directory / "sitecustomize.py").write_text(WATCH_DIES)
        pod.sidecar.environ["PYTHONPATH"] = f"{pod.directory}:{pod.sidecar.environ['PYTHONPATH']}"
        pod.sidecar.backoff = 60
        await pod.start()
        await pod.sidecar.until(lambda: pod.sidecar.exits, 40)
        assert pod.sidecar.exits[0].code == 1
        assert "RuntimeError: injected: the volume watch died" in pod.sidecar.printed
        assert await pod.get("/livez") == (0, b"")
        # The engine is not hurt, and the next sidecar adopts it.
        (pod.directory / "sitecustomize.py").unlink()
        shutil.rmtree(pod.directory / "__pycache__", ignore_errors=True)
        await pod.sidecar.stop()
        pod.sidecar.start()
        health = await pod.until_state("ready")
        assert health["restarts"] == 0
        assert pod.engine.exits == []


def namespace() -> list[str]:
    """The command that makes its child process number 1 of a namespace of its own."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    if subprocess.run([*command, "true"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("no process namespaces here")
    return command


def first_in_namespace(pod: Pod) -> int | None:
    return next((pid for pid in pod.sidecar.processes() if pid != pod.sidecar.pid), None)


@pytest.mark.parametrize("moment", ["ready", "still importing"])
async def test_process_number_one_obeys_sigterm(moment: str) -> None:
    """The kernel drops a signal to process 1 of a container that has no handler for it yet."""
    async with Pod() as pod:
        pod.sidecar.command = [*namespace(), *pod.sidecar.command]
        await pod.start()
        await pod.sidecar.until(lambda: first_in_namespace(pod) is not None, 40)
        if moment == "ready":
            await pod.until_state("ready")
        else:
            # Python itself takes some 50 ms before a line of ours runs; what we import, several times that. A signal
            # of those first 50 ms is lost, whoever is number 1.
            await pod.sidecar.until(lambda: catches(first_in_namespace(pod) or 0, signal.SIGTERM), 40)
        first = first_in_namespace(pod)
        assert first is not None
        pod.sidecar.backoff = 60
        began = time.time()
        os.kill(first, signal.SIGTERM)
        await pod.sidecar.until(lambda: pod.sidecar.exits, 40)
        print(f"process 1, {moment}: gone after {pod.sidecar.exits[0].at - began:.3f} s")
        # On a machine this busy it may have been waiting for the engine already, and have left as from there.
        assert pod.sidecar.exits[0].code in ({0} if moment == "ready" else {0, 143})
        pod.assert_clean()


async def test_a_port_that_is_taken_is_one_clear_line() -> None:
    async with Pod() as pod:
        with socket.socket() as other:
            other.bind(("127.0.0.1", pod.port))
            other.listen()
            pod.sidecar.backoff = 60
            pod.sidecar.start()
            await pod.sidecar.until(lambda: pod.sidecar.exits, 40)
        assert pod.sidecar.exits[0].code == 1
        line = f"WINGS_PORT={pod.port} on WINGS_HOST=127.0.0.1: cannot listen: Address already in use"
        line += "; end the process that has it, or set WINGS_PORT to another port"
        assert pod.sidecar.printed.splitlines() == [line]
        assert list(pod.volume.iterdir()) == []
