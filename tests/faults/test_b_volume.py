"""B. The shared volume."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine_container import shell_command
from tests.faults.program import ROOT
from tests.faults.scene import get, state
from tests.ports import free_port
from tests.sidecar import sidecar
from wings_proxy.config.load import ConfigError, load_config
from wings_proxy.engines import ENGINES
from wings_proxy.handover.launch import LaunchSpec, Script, render
from wings_proxy.handover.launch_spec import launch_spec
from wings_proxy.handover.volume import Volume, VolumeError, VolumeReason
from wings_proxy.lifecycle.log_tail import LogFile


def script_of(**environ: str) -> Script:
    config = load_config({"MODEL_PATH": "/m", **environ})
    return render(launch_spec(config, ENGINES[config.engine_type]))


OLD = script_of(MODEL_PATH="/old")
NEW = script_of(MODEL_PATH="/new")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
async def test_b22_killed_at_any_step_the_engine_sees_no_half_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    await Volume(tmp_path).publish(OLD)

    def killed(*_: object, **__: object) -> None:
        raise SystemError("killed here")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, killed)
        with pytest.raises(SystemError):
            await Volume(tmp_path).publish(NEW)
    assert (tmp_path / "start_command.sh").read_bytes() == OLD.text
    await Volume(tmp_path).publish(NEW)
    assert os.listdir(tmp_path) == ["start_command.sh"]  # noqa: PTH208


PUBLISHER = """
import asyncio, itertools, os, sys
from pathlib import Path
from tests.faults.test_b_volume import NEW, OLD
from wings_proxy.handover.volume import Volume

async def publish():
    volume = Volume(Path(sys.argv[1]))
    for script in itertools.cycle([NEW, OLD]):
        await volume.publish(script)
        os.write(1, b".")

for line in sys.stdin:
    if not (child := os.fork()):
        os.write(1, b"%d\\n" % os.getpid())
        asyncio.run(publish())
    os.waitpid(child, 0)
    os.write(1, b"\\n")
"""
KILLS = int(os.environ.get("WINGS_SOAK_SEEDS", "200"))


@pytest.mark.slow
def test_b22_killed_at_any_moment_the_engine_sees_no_half_a_script(tmp_path: Path) -> None:
    """For true, and again and again; the directory is looked at all the time, as an engine's container does."""
    chance = random.Random(22)
    script, whole = tmp_path / "start_command.sh", {OLD.text, NEW.text}
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, tmp_path], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        looks = leftovers = 0
        for _ in range(KILLS):
            publisher.stdin.write(b"\n")
            publisher.stdin.flush()
            pid = int(publisher.stdout.readline())
            assert publisher.stdout.read(1) == b"."
            until = time.monotonic() + chance.uniform(0.0, 0.01)
            while time.monotonic() < until:
                assert script.read_bytes() in whole
                looks += 1
            os.kill(pid, signal.SIGKILL)
            publisher.stdout.readline()
            assert script.read_bytes() in whole
            leftovers += len(os.listdir(tmp_path)) > 1  # noqa: PTH208
        publisher.stdin.close()
    print(f"{KILLS} kills, {looks} looks, {leftovers} times with a temporary file left")
    assert leftovers  # some of them hit the middle
    asyncio.run(Volume(tmp_path).publish(OLD))
    asyncio.run(Volume(tmp_path).publish(NEW))
    assert os.listdir(tmp_path) == ["start_command.sh"]  # noqa: PTH208


async def test_b23_a_full_volume_is_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("wings_proxy.handover.volume.replace", full)
        async with sidecar(tmp_path, free_port()) as running:
            body = await running.health(lambda body: body["reason"] == "volume_full")
            assert body["state"] == "waiting"
            assert [(await running.get(path))[0] for path in ("/livez", "/readyz", "/startupz")] == [200, 503, 503]
            assert (await get(running, b"/v1/models")).status == 503
            patched.undo()
            await state(running, "starting")
            assert (await running.get("/startupz"))[0] == 200


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, VolumeReason.MISSING),
        (lambda path: path.write_text("a file"), VolumeReason.NOT_A_DIRECTORY),
        (lambda path: (path / "start_command.sh").mkdir(parents=True), VolumeReason.OCCUPIED),
    ],
)
async def test_b24_a_volume_that_is_none(tmp_path: Path, make: Callable[[Path], object], reason: VolumeReason) -> None:
    make(tmp_path / "volume")
    with pytest.raises(VolumeError, match=str(tmp_path)) as caught:
        await Volume(tmp_path / "volume").publish(NEW)
    assert caught.value.reason is reason


async def test_b25_a_stale_script_is_replaced_and_an_equal_one_adopted(tmp_path: Path) -> None:
    await Volume(tmp_path).publish(OLD)
    assert await Volume(tmp_path).publish(NEW)
    assert (tmp_path / "start_command.sh").read_bytes() == NEW.text
    assert not await Volume(tmp_path).publish(NEW)


@pytest.mark.parametrize("target", ["victim", "missing"])
async def test_b26_a_link_in_the_scripts_place_hits_nobody(tmp_path: Path, target: str) -> None:
    (tmp_path / "victim").write_text("untouched")
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "start_command.sh").symlink_to(tmp_path / target)
    await Volume(volume).publish(NEW)
    assert not (volume / "start_command.sh").is_symlink()
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "missing").exists()


async def test_b26_a_fifo_in_a_files_place_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "start_command.sh")
    os.mkfifo(tmp_path / "engine.status")
    async with asyncio.timeout(40):
        await Volume(tmp_path).publish(NEW)
        assert await Volume(tmp_path).read_status() is None


async def test_b27_a_script_the_engine_rewrote_is_put_right_and_never_run_by_us(tmp_path: Path) -> None:
    await Volume(tmp_path).publish(NEW)
    (tmp_path / "start_command.sh").write_bytes(b"touch " + shlex.quote(str(tmp_path / "ran")).encode())
    (tmp_path / "start_command.sh").chmod(0o777)
    assert await Volume(tmp_path).publish(NEW)
    assert (tmp_path / "start_command.sh").read_bytes() == NEW.text
    assert stat.S_IMODE((tmp_path / "start_command.sh").stat().st_mode) == 0o755
    assert not (tmp_path / "ran").exists()


async def test_b28_a_narrow_umask_locks_nobody_out(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        await Volume(tmp_path).publish(NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "start_command.sh").stat().st_mode) == 0o755


async def test_b29_the_file_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_rename(*where: Any, **directories: Any) -> None:
        steps.append("rename")
        rename(*where, **directories)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    await Volume(tmp_path).publish(NEW)
    assert steps == ["file", "rename", "directory"]


NASTY = ["$(touch ran)", "`touch ran`", "; touch ran", "a'b\"c", "*", "~", "-x", "模型", "x" * 5000, "$HOME", ""]


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_b30_every_value_is_one_argument_and_runs_nothing(tmp_path: Path, shell: str) -> None:
    script = script_of(ENGINE_EXTRA_ARGS=shlex.join(NASTY)).text
    head = script[: script.index(b"# shellcheck shell=sh")] + b"\nprintf '%s\\0' \"$@\"\n"
    (tmp_path / "head").write_bytes(head)
    seen = subprocess.run([*shell_command(shell), "head"], cwd=tmp_path, capture_output=True, timeout=100, check=True)
    assert seen.stdout.decode().split("\0")[:-1][-len(NASTY) :] == NASTY
    assert [entry.name for entry in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize(("character", "name"), [("\r", "CR"), ("\n", "LF"), ("\0", "NUL")])
def test_b30_what_would_end_a_line_is_refused(character: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"MODEL_PATH=.*must not contain {name}"):
        load_config({"MODEL_PATH": f"/m{character}x"})


def test_b31_an_unbalanced_quote_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"ENGINE_EXTRA_ARGS=.*cannot be split"):
        load_config({"MODEL_PATH": "/m", "ENGINE_EXTRA_ARGS": "--a 'b"})


def test_b32_a_sigterm_reaches_the_engine_at_once(tmp_path: Path) -> None:
    engine = "trap 'echo stopped > stopped; exit 0' TERM; echo up > up; while :; do sleep 0.02; done"
    spec = LaunchSpec(("sh", "-c", engine), (), release_seconds=0, stop_seconds=10)
    (tmp_path / "start_command.sh").write_bytes(render(spec).text)
    process = subprocess.Popen(["sh", str(tmp_path / "start_command.sh")], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "up")
        process.terminate()
        assert process.wait(40) == 0
        assert (tmp_path / "stopped").exists()
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 40
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


async def test_b33_two_sidecars_at_once_leave_one_whole_script(tmp_path: Path) -> None:
    for _ in range(10):
        # One may clear the other's unfinished file away as a dead one's: it is told, and tries again.
        publishing = (Volume(tmp_path).publish(script) for script in (OLD, NEW, OLD, NEW))
        for done in await asyncio.gather(*publishing, return_exceptions=True):
            assert isinstance(done, bool | VolumeError)
        assert (tmp_path / "start_command.sh").read_bytes() in (OLD.text, NEW.text)
    assert os.listdir(tmp_path) == ["start_command.sh"]  # noqa: PTH208


async def test_b34_a_log_that_does_everything_a_log_should_not(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    log = LogFile(path)
    path.write_bytes(b"")
    await log.read()
    async with asyncio.timeout(40):
        path.write_bytes(b"\0\xff\x1b[31m" + b"x" * 20_000_000)
        assert len(await log.read()) < 2_000_000  # of a flood, the newest part
        path.unlink()
        path.write_bytes(b"again\n")
        assert await log.read() == b"again\n"
        os.truncate(path, 0)
        assert await log.read() == b""
        path.unlink()
        os.mkfifo(path)
        assert await log.read() == b""
        path.unlink()
        (tmp_path / "secret").write_text("secret")
        path.symlink_to(tmp_path / "secret")
        assert await log.read() == b""
