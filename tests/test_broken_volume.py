"""Ten ways to break the shared volume: what the sidecar says, that nothing worse happens, that mending it is enough.

What is printed stays one line for each cause. `pytest -s` shows it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.mounts import remount, tmpfs
from tests.pod import Pod
from tests.stream_client import Verdict, stream
from wings_proxy.handover.launch import LaunchSpec, render

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

OLD = render(LaunchSpec(("false",), (), 1, 1))
# Permissions mean nothing to root, as long as it has its capabilities.
WITHOUT_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


async def complaints(pod: Pod, at_least: int = 0) -> list[dict[str, Any]]:
    """What the sidecar logged above `info`, but for the warning of every start; the log is a moment late."""

    def told() -> list[dict[str, Any]]:
        return [line for line in pod.log() if line["level"] != "info" and "TRUST_REMOTE_CODE" not in line["message"]]

    await pod.sidecar.until(lambda: len(told()) >= at_least, 40)
    lines = told()
    for line in lines:
        print(f"{line['level']}: {line['message']} {line.get('reason', '')}")
    return lines


async def waits(pod: Pod, reason: str) -> None:
    """It waits with a reason, alive, and says so once however often it tries."""
    health = await pod.until(lambda body: body.get("reason") == reason)
    assert (health["state"], health["status"]) == ("waiting", "starting")
    assert (await pod.get("/livez"))[0] == 200
    assert (await pod.get("/startupz"))[0] == 503
    assert (await pod.get("/readyz"))[0] == 503
    await asyncio.sleep(1.3)
    lines = await complaints(pod, 1)
    assert [(line["level"], line["reason"]) for line in lines] == [("error", reason)], pod.story()
    assert "\n" not in lines[0]["message"]
    assert str(pod.volume) in lines[0]["message"]


async def serves(pod: Pod) -> None:
    """It became ready by itself, and a stream gets through."""
    await pod.until_state("ready")
    async with aiohttp.ClientSession() as session:
        answer = await stream(session, pod.url, 5)
    assert answer.verdict is Verdict.WHOLE, f"{answer}\n{pod.story()}"
    pod.assert_clean()


def old_script(pod: Pod) -> Path:
    script = pod.volume / "start_command.sh"
    script.write_bytes(OLD.text)
    return script


async def test_1_the_volume_is_full() -> None:
    async with Pod() as pod:
        with tmpfs(pod.volume, size="64k"):
            script = old_script(pod)
            filler = pod.volume / "filler"
            fill(filler)
            pod.sidecar.start()
            await waits(pod, "volume_full")
            assert script.read_bytes() == OLD.text
            assert sorted(path.name for path in pod.volume.iterdir()) == ["filler", "start_command.sh"]
            filler.unlink()
            await pod.until_state("starting")
            pod.engine.start()
            await serves(pod)
            await pod.engine.stop()
            await pod.sidecar.stop()


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


async def test_2_the_volume_fills_up_under_a_running_engine() -> None:
    """No hold can be taken: requests go through unprotected, which is said once."""
    async with Pod() as pod:
        with tmpfs(pod.volume, size="256k"):
            await pod.start()
            await pod.until_state("ready")
            fill(pod.volume / "filler")
            await serves(pod)
            await serves(pod)
            lines = await complaints(pod, 1)
            assert len(lines) == 1, pod.story()
            assert lines[0]["message"].startswith("requests of this engine run are not protected from its stop: ")
            # Its end is known all the same.
            assert await pod.engine.terminate() == 0
            await pod.until_state("starting", "failed")
            await pod.sidecar.stop()


async def test_3_no_permission_to_write() -> None:
    async with Pod() as pod:
        pod.sidecar.command[:0] = WITHOUT_CAPABILITIES
        script = old_script(pod)
        pod.volume.chmod(0o555)
        pod.sidecar.start()
        await waits(pod, "volume_denied")
        assert script.read_bytes() == OLD.text
        pod.volume.chmod(0o777)
        await pod.until_state("starting")
        pod.engine.start()
        await serves(pod)


async def test_4_read_only() -> None:
    async with Pod() as pod:
        with tmpfs(pod.volume, size="1m"):
            script = old_script(pod)
            remount(pod.volume, "ro")
            pod.sidecar.start()
            await waits(pod, "volume_read_only")
            assert script.read_bytes() == OLD.text
            remount(pod.volume, "rw")
            await pod.until_state("starting")
            pod.engine.start()
            await serves(pod)
            await pod.engine.stop()
            await pod.sidecar.stop()


async def test_5_no_such_directory() -> None:
    async with Pod() as pod:
        pod.volume.rmdir()
        pod.sidecar.start()
        pod.engine.start()
        await waits(pod, "volume_missing")
        pod.volume.mkdir()
        await serves(pod)


async def test_6_a_file_in_the_volumes_place() -> None:
    async with Pod() as pod:
        pod.volume.rmdir()
        pod.volume.write_text("not a directory")
        pod.sidecar.start()
        pod.engine.start()
        await waits(pod, "volume_not_a_directory")
        assert pod.volume.read_text() == "not a directory"
        pod.volume.unlink()
        pod.volume.mkdir()
        await serves(pod)


def a_link(pod: Pod, script: Path) -> None:
    target = pod.directory / "precious"
    target.write_text("precious")
    script.symlink_to(target)


def a_fifo(_: Pod, script: Path) -> None:
    os.mkfifo(script)


@pytest.mark.parametrize("lies_there", [a_link, a_fifo])
async def test_7_something_else_under_the_scripts_name_is_replaced(lies_there: Callable[[Pod, Path], None]) -> None:
    async with Pod() as pod:
        script = pod.volume / "start_command.sh"
        lies_there(pod, script)
        pod.sidecar.start()
        await pod.until_state("starting")
        assert script.is_file()
        assert not script.is_symlink()
        if lies_there is a_link:
            assert (pod.directory / "precious").read_text() == "precious"
        pod.engine.start()
        await serves(pod)
        assert await complaints(pod) == []


async def test_7_a_directory_under_the_scripts_name_is_not_ours() -> None:
    async with Pod() as pod:
        script = pod.volume / "start_command.sh"
        script.mkdir()
        (script / "precious").touch()
        pod.sidecar.start()
        pod.engine.start()
        await waits(pod, "volume_occupied")
        assert (script / "precious").exists()
        shutil.rmtree(script)
        await serves(pod)


async def test_8_a_directory_under_the_holds_name() -> None:
    """Requests go through, unprotected; the engine's stop is not held up by something that names no run."""
    async with Pod() as pod:
        (pod.volume / "hold").mkdir()
        await pod.start()
        await serves(pod)
        await serves(pod)
        messages = [line["message"] for line in await complaints(pod, 2)]
        assert len(messages) == 2, messages
        assert messages[0].startswith("the hold could not be removed: ")
        assert messages[1].startswith("requests of this engine run are not protected from its stop: ")
        assert await pod.engine.terminate() == 0
        assert await pod.sidecar.terminate() == 0
        await pod.engine.settled()
        pod.assert_clean()


@asynccontextmanager
async def without_volume(pod: Pod) -> AsyncIterator[None]:
    away = pod.directory / "away"
    pod.volume.rename(away)
    try:
        yield
    finally:
        away.rename(pod.volume)


async def test_9_the_volume_goes_away_and_comes_back() -> None:
    async with Pod() as pod:
        await pod.start()
        before = await pod.until_state("ready")
        path = pod.path
        async with without_volume(pod):
            # An engine that answers is ready, whatever became of the files.
            await asyncio.sleep(6)
            await serves(pod)
            assert pod.path == path
        await asyncio.sleep(1)
        after = await pod.health()
        assert (after["state"], after["run"], pod.path) == ("ready", before["run"], path)
        messages = [line["message"] for line in await complaints(pod)]
        assert len(messages) <= 2, messages
        # And the protocol works again.
        pod.engine.signal(signal.SIGKILL)
        await pod.until(lambda body: body.get("restarts") == 1 and body["state"] == "ready")
        await serves(pod)


async def test_9_a_volume_that_came_back_empty_gets_its_script_again() -> None:
    async with Pod() as pod:
        await pod.start()
        before = await pod.until_state("ready")
        for path in pod.volume.iterdir():
            path.unlink()
        await asyncio.sleep(0.5)
        assert (await pod.health())["state"] == "ready"
        pod.engine.signal(signal.SIGKILL)
        health = await pod.until(lambda body: body.get("run") != before["run"] and body.get("state") == "ready")
        assert health["restarts"] == 1
        await serves(pod)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1024**3)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("lies_there", [garbage, huge, fifo, link, directory])
async def test_10_a_status_that_is_none(lies_there: Callable[[Path], None]) -> None:
    """Nobody stays misled: HTTP decides, and what the script writes next is believed again, if it can write it."""
    async with Pod(engine={"boot_seconds": 1}) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        path = pod.path
        status = pod.volume / "engine.status"
        status.unlink()
        lies_there(status)
        await asyncio.sleep(1)
        assert ((await pod.health())["state"], pod.path) == ("ready", path)
        await serves(pod)
        pod.engine.signal(signal.SIGKILL)
        if lies_there is directory:
            # The script cannot replace it, so nobody hears of the new run; what answers is ready.
            await pod.until(lambda _: "unhealthy" in pod.path)
            await pod.until_state("ready")
        else:
            await pod.until(lambda body: body.get("run") != before["run"] and body.get("state") == "ready")
        await serves(pod)
        assert "Traceback" not in pod.sidecar.printed
