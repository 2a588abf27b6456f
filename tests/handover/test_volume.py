"""The sidecar's side of the shared volume, on real directories."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from wings_proxy.handover import volume as volume_module
from wings_proxy.handover.alive_fifo import FileIdentity
from wings_proxy.handover.engine_status import EngineStatus, Phase
from wings_proxy.handover.launch import LaunchSpec, render
from wings_proxy.handover.sidecar_record import SidecarRecord
from wings_proxy.handover.volume import Volume, VolumeError, VolumeReason, VolumeSample, watch
from wings_proxy.handover.volume_lock import VolumeLock

RUN = "0b1c2d3e-4f50-4a61-8b72-9c83ad94be05"
NEXT_RUN = "1b1c2d3e-4f50-4a61-8b72-9c83ad94be05"
OLD = render(LaunchSpec(("engine", "--old"), (), 70, 30))
NEW = render(LaunchSpec(("engine", "--new"), (), 70, 30))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    directory = tmp_path / "volume"
    directory.mkdir()
    return Volume(directory)


def script_in(volume: Volume) -> Path:
    return volume.path / "start_command.sh"


# Publishing


async def test_the_script_lies_there_runnable_by_everybody_and_alone(volume: Volume) -> None:
    assert await volume.publish(NEW) is True
    assert script_in(volume).read_bytes() == NEW.text
    assert stat.S_IMODE(script_in(volume).stat().st_mode) == 0o755
    assert [entry.name for entry in volume.path.iterdir()] == ["start_command.sh"]


async def test_a_narrow_umask_does_not_lock_the_engine_out(volume: Volume) -> None:
    before = os.umask(0o077)
    try:
        await volume.publish(NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(script_in(volume).stat().st_mode) == 0o755


async def test_a_restarted_sidecar_adopts_the_script_it_finds(volume: Volume) -> None:
    await volume.publish(NEW)
    inode = script_in(volume).stat().st_ino
    assert await Volume(volume.path).publish(NEW) is False
    assert script_in(volume).stat().st_ino == inode


async def test_adopting_puts_the_mode_right(volume: Volume) -> None:
    await volume.publish(NEW)
    script_in(volume).chmod(0o777)
    assert await volume.publish(NEW) is False
    assert stat.S_IMODE(script_in(volume).stat().st_mode) == 0o755


async def test_a_new_configuration_leaves_the_running_engine_its_old_file(volume: Volume) -> None:
    await volume.publish(OLD)
    with script_in(volume).open("rb") as running:
        assert await volume.publish(NEW) is True
        assert running.read() == OLD.text
    assert script_in(volume).read_bytes() == NEW.text


async def test_a_script_that_somebody_changed_is_written_anew(volume: Volume) -> None:
    await volume.publish(NEW)
    same_length = NEW.text.replace(b"--new", b"--bad")
    script_in(volume).write_bytes(same_length)
    assert await volume.publish(NEW) is True
    assert script_in(volume).read_bytes() == NEW.text


async def test_the_right_bytes_under_a_second_name_are_not_adopted(volume: Volume) -> None:
    await volume.publish(NEW)
    os.link(script_in(volume), volume.path / "second-name")
    assert await volume.publish(NEW) is True
    (volume.path / "second-name").write_bytes(b"evil")
    assert script_in(volume).read_bytes() == NEW.text


async def test_a_link_is_replaced_and_its_target_untouched(volume: Volume, tmp_path: Path) -> None:
    target = tmp_path / "passwd"
    target.write_bytes(NEW.text)
    target.chmod(0o600)
    script_in(volume).symlink_to(target)
    assert await volume.publish(NEW) is True
    assert not script_in(volume).is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    await volume.publish(OLD)
    assert target.read_bytes() == NEW.text


async def test_a_dangling_link_is_replaced(volume: Volume, tmp_path: Path) -> None:
    script_in(volume).symlink_to(tmp_path / "nowhere")
    assert await volume.publish(NEW) is True
    assert not (tmp_path / "nowhere").exists()


async def test_a_fifo_is_replaced_without_waiting_for_its_writer(volume: Volume) -> None:
    os.mkfifo(script_in(volume))
    assert await volume.publish(NEW) is True
    assert script_in(volume).is_file()


async def test_a_socket_is_replaced(volume: Volume) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(script_in(volume)))
        assert await volume.publish(NEW) is True
    assert script_in(volume).is_file()


async def test_a_directory_in_the_scripts_place_is_somebody_elses(volume: Volume) -> None:
    script_in(volume).mkdir()
    (script_in(volume) / "precious").touch()
    with pytest.raises(VolumeError) as raised:
        await volume.publish(NEW)
    assert raised.value.reason == "volume_occupied"
    assert raised.value.detail == f"{script_in(volume)}: Is a directory"
    assert [entry.name for entry in volume.path.iterdir()] == ["start_command.sh"]


async def test_what_a_killed_sidecar_left_half_written_is_cleared_away(volume: Volume) -> None:
    (volume.path / ".start_command.sh.0123456789abcdef").write_bytes(NEW.text[:100])
    (volume.path / ".hold.0123456789abcdef").touch()
    (volume.path / ".start_command.sh.directory").mkdir()
    (volume.path / "other").touch()
    await volume.publish(NEW)
    names = sorted(entry.name for entry in volume.path.iterdir())
    assert names == [".start_command.sh.directory", "other", "start_command.sh"]


async def test_two_sidecars_at_once_take_turns(tmp_path: Path) -> None:
    locks = VolumeLock(), VolumeLock()
    first, second = (Volume(tmp_path, lock=lock) for lock in locks)
    await first.publish(OLD)
    await first.take_hold(RUN)
    with pytest.raises(VolumeError, match=f"volume_in_use: {tmp_path}: another sidecar writes to it"):
        await second.publish(NEW)
    with pytest.raises(VolumeError, match="volume_in_use"):
        await second.take_hold(NEXT_RUN)
    # It may be what keeps the first one's streams alive.
    await second.release_hold()
    assert await first.read_hold() == RUN
    assert script_in(first).read_bytes() == OLD.text
    locks[0].release()
    assert await second.publish(NEW)
    await second.release_hold()
    assert [entry.name for entry in second.path.iterdir()] == ["start_command.sh"]
    locks[1].release()


async def test_without_a_volume_there_is_no_lock_and_no_hold(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "absent", lock=VolumeLock())
    await volume.release_hold()
    with pytest.raises(VolumeError, match="volume_missing"):
        await volume.publish(NEW)


async def test_no_volume_mounted(tmp_path: Path) -> None:
    with pytest.raises(VolumeError) as raised:
        await Volume(tmp_path / "absent").publish(NEW)
    assert raised.value.reason is VolumeReason.MISSING
    assert str(raised.value) == f"volume_missing: {tmp_path}/absent/start_command.sh: No such file or directory"


async def test_a_file_where_the_volume_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError) as raised:
        await Volume(tmp_path / "file").publish(NEW)
    assert raised.value.reason is VolumeReason.NOT_A_DIRECTORY


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "volume_full"),
        (errno.EDQUOT, "volume_full"),
        (errno.EROFS, "volume_read_only"),
        (errno.EACCES, "volume_denied"),
        (errno.EPERM, "volume_denied"),
        (errno.EIO, "volume_error"),
    ],
)
@pytest.mark.parametrize("step", ["open", "write", "fchmod", "fsync", "rename"])
async def test_whatever_step_fails_the_old_script_stays_whole_and_the_cause_is_named(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, step: str, code: int, reason: str
) -> None:
    await volume.publish(OLD)
    real = getattr(os, step)

    def failing(*arguments: object, **options: object) -> object:
        if step == "open" and not (isinstance(arguments[1], int) and arguments[1] & os.O_CREAT):
            return real(*arguments, **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"wings_proxy.handover.atomic_file.os.{step}", failing)
    with pytest.raises(VolumeError) as raised:
        await volume.publish(NEW)
    monkeypatch.undo()
    assert raised.value.reason == reason
    assert raised.value.detail == f"{script_in(volume)}: {os.strerror(code)}"
    assert script_in(volume).read_bytes() == OLD.text
    assert [entry.name for entry in volume.path.iterdir()] == ["start_command.sh"]


def publish_in_a_child(volume: Volume, before: str, mount: str) -> str:
    """Publish in a mount namespace of its own; what happened, in one line."""
    program = (
        "import asyncio, sys; from pathlib import Path; from wings_proxy.handover.launch import LaunchSpec, render\n"
        "from wings_proxy.handover.volume import Volume, VolumeError\n"
        "volume = Volume(Path(sys.argv[1])); script = render(LaunchSpec(('engine', 'x' * 100_000), (), 1, 1))\n"
        "try: print(asyncio.run(volume.publish(script)))\n"
        "except VolumeError as error: print(error.reason)\n"
    )
    shell = f'{mount} && cd "$1" && {before}; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", str(volume.path), sys.executable, program],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stderr == ""
    return done.stdout.strip()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
TMPFS = 'mount -t tmpfs -o size=64k tmpfs "$1"'


@needs_root
def test_a_volume_that_is_too_small(volume: Volume) -> None:
    assert publish_in_a_child(volume, "true", mount=TMPFS) == "volume_full"


@needs_root
def test_a_volume_that_is_mounted_read_only(volume: Volume) -> None:
    read_only = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    assert publish_in_a_child(volume, "true", mount=read_only) == "volume_read_only"


@needs_root
def test_a_killed_predecessors_leftovers_make_room(volume: Volume) -> None:
    roomy = TMPFS.replace("64k", "160k")
    fill = "head -c 100000 /dev/zero >.start_command.sh.0123456789abcdef"
    assert publish_in_a_child(volume, fill, mount=roomy) == "True"
    assert publish_in_a_child(volume, fill.replace(".start", "start"), mount=roomy) == "volume_full"


@pytest.fixture
def open_volume() -> Iterator[Volume]:
    """In a directory every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="wings-") as name:
        Path(name).chmod(0o777)
        yield Volume(Path(name))


async def test_a_directory_we_may_not_write(open_volume: Volume) -> None:
    open_volume.path.chmod(0o555)
    with as_another_user(), pytest.raises(VolumeError) as raised:
        await open_volume.publish(NEW)
    assert raised.value.reason is VolumeReason.DENIED


async def test_a_script_of_another_user_is_adopted_as_it_is_or_replaced(open_volume: Volume) -> None:
    """A sidecar that was given another user id in an upgrade may not change the old one's file, only the directory."""
    was_root = os.geteuid() == 0
    await open_volume.publish(NEW)
    with as_another_user():
        assert await open_volume.publish(NEW) is False
    script_in(open_volume).chmod(0o700)
    with as_another_user():
        assert await open_volume.publish(NEW) is was_root
    assert stat.S_IMODE(script_in(open_volume).stat().st_mode) == 0o755


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may write everywhere; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(10001)
    try:
        yield
    finally:
        os.seteuid(0)


# The hold


async def test_a_hold_names_the_run_and_the_engines_user_can_read_it(volume: Volume) -> None:
    await volume.take_hold(RUN)
    hold = volume.path / "hold"
    assert hold.read_text() == RUN + "\n"
    assert stat.S_IMODE(hold.stat().st_mode) == 0o644
    await volume.take_hold(NEXT_RUN)
    assert hold.read_text() == NEXT_RUN + "\n"
    await volume.release_hold()
    assert list(volume.path.iterdir()) == []


async def test_a_hold_that_was_left_can_be_read(volume: Volume, tmp_path: Path) -> None:
    assert await volume.read_hold() is None
    await volume.take_hold(RUN)
    assert await volume.read_hold() == RUN
    (volume.path / "hold").write_bytes(b"\xff\n" * 300)
    assert await volume.read_hold() is None
    await volume.release_hold()
    (volume.path / "hold").write_bytes(b"")
    assert await volume.read_hold() is None
    await volume.release_hold()
    (volume.path / "hold").symlink_to(tmp_path / "precious")
    assert await volume.read_hold() is None
    assert await Volume(tmp_path / "absent").read_hold() is None


# The record


RECORD = SidecarRecord(RUN, "0" * 12, ready=True, began=1.5, loaded_generation=None, load_seconds=None)


async def test_what_a_sidecar_keeps_its_next_process_reads(volume: Volume) -> None:
    assert await volume.read_record() is None
    await volume.save_record(RECORD)
    assert stat.S_IMODE((volume.path / "sidecar.record").stat().st_mode) == 0o600
    assert await Volume(volume.path).read_record() == RECORD
    assert [entry.name for entry in volume.path.iterdir()] == ["sidecar.record"]


async def test_whatever_lies_in_the_records_place_is_not_read_and_not_written_to(
    volume: Volume, tmp_path: Path
) -> None:
    record, precious = volume.path / "sidecar.record", tmp_path / "precious"
    precious.write_bytes(RECORD.to_bytes())
    record.symlink_to(precious)
    assert await volume.read_record() is None
    await volume.save_record(replace(RECORD, ready=False))
    assert not record.is_symlink()
    assert precious.read_bytes() == RECORD.to_bytes()
    record.unlink()
    os.mkfifo(record)
    assert await volume.read_record() is None
    record.unlink()
    record.write_bytes(RECORD.to_bytes() * 100)
    assert await volume.read_record() is None
    record.unlink()
    record.mkdir()
    assert await volume.read_record() is None
    with pytest.raises(VolumeError) as caught:
        await volume.save_record(RECORD)
    assert caught.value.reason is VolumeReason.OCCUPIED
    assert await Volume(tmp_path / "absent").read_record() is None


async def test_a_record_is_not_written_beside_another_sidecar(volume: Volume) -> None:
    first, second = VolumeLock(), VolumeLock()
    try:
        await Volume(volume.path, lock=first).save_record(RECORD)
        with pytest.raises(VolumeError) as caught:
            await Volume(volume.path, lock=second).save_record(replace(RECORD, ready=False))
        assert caught.value.reason is VolumeReason.IN_USE
        assert await volume.read_record() == RECORD
    finally:
        first.release()
        second.release()


async def test_releasing_what_nobody_holds_is_fine(volume: Volume, tmp_path: Path) -> None:
    await volume.release_hold()
    await Volume(tmp_path / "absent").release_hold()
    (tmp_path / "file").touch()
    await Volume(tmp_path / "file").release_hold()


async def test_a_link_in_the_holds_place_is_replaced(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (volume.path / "hold").symlink_to(tmp_path / "precious")
    await volume.take_hold(RUN)
    await volume.release_hold()
    assert (tmp_path / "precious").read_text() == "precious"


async def test_a_hold_that_cannot_be_taken_or_released_says_why(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume.path / "hold").mkdir()
    with pytest.raises(VolumeError, match="volume_occupied"):
        await volume.take_hold(RUN)
    with pytest.raises(VolumeError, match="volume_occupied"):
        await volume.release_hold()

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(VolumeError, match="volume_read_only"):
        await volume.release_hold()
    monkeypatch.undo()
    (volume.path / "hold").rmdir()
    monkeypatch.setattr(Path, "unlink", read_only)
    await volume.release_hold()  # nothing is held on a volume that cannot be written


# Reading the status


def status_line(run: str = RUN, phase: Phase = Phase.RUNNING, *, asked: bool = False, code: int | None = None) -> str:
    fields = {"run": run, "generation": NEW.generation, "phase": phase, "asked": asked, "code": code}
    return json.dumps(fields | {"started": 1, "changed": 2}) + "\n"


def status(
    run: str = RUN, phase: Phase = Phase.RUNNING, *, asked: bool = False, code: int | None = None
) -> EngineStatus:
    return EngineStatus(run, NEW.generation, phase, asked, code, started=1, changed=2)


async def test_the_status_is_what_the_script_wrote(volume: Volume) -> None:
    assert await volume.read_status() is None
    (volume.path / "engine.status").write_text(status_line(phase=Phase.EXITED, code=137))
    assert await volume.read_status() == status(phase=Phase.EXITED, code=137)


@pytest.mark.parametrize("kind", ["link", "fifo", "socket", "directory", "too long", "nonsense"])
async def test_whatever_else_lies_there_is_no_status(volume: Volume, tmp_path: Path, kind: str) -> None:
    place = volume.path / "engine.status"
    with socket.socket(socket.AF_UNIX) as server:
        match kind:
            case "link":
                (tmp_path / "elsewhere").write_text(status_line())
                place.symlink_to(tmp_path / "elsewhere")
            case "fifo":
                os.mkfifo(place)
            case "socket":
                server.bind(str(place))
            case "directory":
                place.mkdir()
            case "too long":
                place.write_text(status_line() + " " * 1024)
            case _:
                place.write_bytes(b"\0" * 100)
        assert await volume.read_status() is None


# Watching


class FakeScript:
    """What the launch script does to the volume, step by step."""

    def __init__(self, volume: Volume, run: str = RUN) -> None:
        self.path = volume.path
        self.run = run
        temporary = self.path / ".engine.alive"
        os.mkfifo(temporary)
        self.descriptor = os.open(temporary, os.O_RDWR | os.O_NONBLOCK)
        temporary.rename(self.path / "engine.alive")

    def says(self, phase: Phase, *, asked: bool = False, code: int | None = None, ring: bool = True) -> None:
        (self.path / ".engine.status").write_text(status_line(self.run, phase, asked=asked, code=code))
        (self.path / ".engine.status").rename(self.path / "engine.status")
        if ring:
            os.write(self.descriptor, b".")

    def dies(self) -> None:
        os.close(self.descriptor)


class Watched:
    """The samples a watch emits, in order."""

    def __init__(self) -> None:
        self.samples: asyncio.Queue[VolumeSample] = asyncio.Queue()

    async def next(self, seconds: float = 40.0) -> VolumeSample:
        async with asyncio.timeout(seconds):
            return await self.samples.get()

    async def until(self, status: EngineStatus | None, *, alive: bool | None) -> list[VolumeSample]:
        """Everything up to the sample that is waited for, without it."""
        before = []
        while (sample := await self.next()) != VolumeSample(status, alive):
            before.append(sample)
        return before


@asynccontextmanager
async def watching(volume: Volume, poll_seconds: float = 60.0) -> AsyncIterator[Watched]:
    """By default without polling to speak of: what is seen was seen because the FIFO said so."""
    watched = Watched()
    task = asyncio.create_task(watch(volume, watched.samples.put_nowait, poll_seconds=poll_seconds))
    try:
        yield watched
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


NOTHING = VolumeSample(None, None)
RUNNING = status()


async def test_an_empty_volume_is_a_sample_too(volume: Volume) -> None:
    async with watching(volume) as watched:
        assert await watched.next() == NOTHING


async def test_a_restarted_sidecar_finds_the_engine_running(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume) as watched:
        assert await watched.next() == VolumeSample(RUNNING, alive=True)
    script.dies()


async def test_what_ended_while_nobody_looked_is_told_as_it_is(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.EXITED, code=1)
    script.dies()
    async with watching(volume) as watched:
        assert await watched.next() == VolumeSample(status(phase=Phase.EXITED, code=1), alive=False)


async def test_a_run_from_start_to_end_by_doorbell_alone(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume) as watched:
        assert await watched.next() == VolumeSample(RUNNING, alive=True)
        script.says(Phase.STOP_REQUESTED, asked=True)
        assert await watched.next() == VolumeSample(status(phase=Phase.STOP_REQUESTED, asked=True), alive=True)
        script.says(Phase.EXITED, asked=True, code=0)
        exited = status(phase=Phase.EXITED, asked=True, code=0)
        assert await watched.next() == VolumeSample(exited, alive=True)
        script.dies()
        assert await watched.next() == VolumeSample(exited, alive=False)


async def test_a_killed_script_is_noticed_at_once(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume) as watched:
        await watched.next()
        script.dies()
        assert await watched.next() == VolumeSample(RUNNING, alive=False)


async def test_an_end_said_just_before_the_end_is_not_a_killing(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume) as watched:
        await watched.next()
        script.says(Phase.EXITED, code=3, ring=False)
        script.dies()
        assert await watched.next() == VolumeSample(status(phase=Phase.EXITED, code=3), alive=False)


async def test_the_next_run_is_found_by_polling(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume, poll_seconds=0.02) as watched:
        await watched.until(RUNNING, alive=True)
        script.dies()
        await watched.until(RUNNING, alive=False)
        following = FakeScript(volume, NEXT_RUN)
        following.says(Phase.RUNNING)
        # Between the new FIFO and the new status the dead run must not come to life.
        assert await watched.until(status(NEXT_RUN), alive=True) == []
        following.dies()
        await watched.until(status(NEXT_RUN), alive=False)


async def test_runs_that_change_quickly_never_look_dead_before_they_are(volume: Volume) -> None:
    runs = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(60)]
    async with watching(volume, poll_seconds=0.001) as watched:
        before: FakeScript | None = None
        for run in runs:
            script = FakeScript(volume, run)
            if before:
                before.dies()
            script.says(Phase.RUNNING)
            before = script
            await asyncio.sleep(0.002)
        samples = await watched.until(status(runs[-1]), alive=True)
        assert before is not None
        before.dies()
        await watched.until(status(runs[-1]), alive=False)
    # Each run's successor has its FIFO in place before it dies: nobody ever sees an end of file. That a run is over is
    # known from its successor's status alone, and told just before it.
    for sample, following in itertools.pairwise([*samples, VolumeSample(status(runs[-1]), alive=True)]):
        if sample.alive is False:
            assert sample.status is not None
            assert following.status is not None
            assert runs.index(sample.status.run) < runs.index(following.status.run)


async def test_a_container_that_starts_again_faster_than_we_look_has_ended_all_the_same(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume, poll_seconds=0.02) as watched:
        await watched.until(RUNNING, alive=True)
        # Without a pause for the loop: one look finds the next run, and nobody saw the end of the last.
        script.dies()
        following = FakeScript(volume, NEXT_RUN)
        following.says(Phase.RUNNING)
        assert await watched.until(status(NEXT_RUN), alive=True) == [VolumeSample(RUNNING, alive=False)]
        following.dies()


async def test_a_dead_runs_fifo_says_nothing_about_the_next_run(volume: Volume) -> None:
    """The sidecar looks between the next script's first status and its own knowledge of the new FIFO."""
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    following: list[FakeScript] = []

    class Interrupted(Volume):
        def look(self) -> tuple[EngineStatus | None, FileIdentity | None]:
            found = super().look()
            if not following:
                script.dies()
                following.append(FakeScript(self, NEXT_RUN))
                following[0].says(Phase.RUNNING)
            return found

    async with watching(Interrupted(volume.path), poll_seconds=0.02) as watched:
        samples = await watched.until(status(NEXT_RUN), alive=True)
        assert status(NEXT_RUN) not in [sample.status for sample in samples]
    following.pop().dies()


async def test_a_run_that_is_gone_stays_gone(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume, poll_seconds=0.01) as watched:
        await watched.until(RUNNING, alive=True)
        script.dies()
        await watched.until(RUNNING, alive=False)
        impostor = FakeScript(volume, "no status of its own")
        (volume.path / "engine.alive").rename(volume.path / "moved")
        await asyncio.sleep(0.05)
        (volume.path / "moved").rename(volume.path / "engine.alive")
        await asyncio.sleep(0.05)
        assert watched.samples.empty()
        impostor.dies()


@pytest.mark.parametrize("kind", ["file", "link", "directory", "socket", "nothing"])
async def test_without_a_fifo_nobody_knows(volume: Volume, kind: str) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    place = volume.path / "engine.alive"
    with socket.socket(socket.AF_UNIX) as server:
        async with watching(volume, poll_seconds=0.01) as watched:
            await watched.until(RUNNING, alive=True)
            place.rename(volume.path / "moved")
            match kind:
                case "file":
                    place.touch()
                case "link":
                    place.symlink_to(volume.path / "moved")
                case "directory":
                    place.mkdir()
                case "socket":
                    server.bind(str(place))
                case _:
                    pass
            await watched.until(RUNNING, alive=None)
            if place.is_dir():
                place.rmdir()
            (volume.path / "moved").rename(place)
            await watched.until(RUNNING, alive=True)
    script.dies()


async def test_a_fifo_we_may_not_read_is_none(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    real = os.open

    def denied(path: Path, *arguments: int, **options: int) -> int:
        if path == volume.path / "engine.alive":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **options)

    monkeypatch.setattr("wings_proxy.handover.volume.os.open", denied)
    async with watching(volume) as watched:
        assert await watched.next() == VolumeSample(RUNNING, alive=None)
    script.dies()


async def test_a_fifo_that_turns_into_a_file_while_it_is_opened_is_none(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume.path / "engine.status").write_text(status_line())
    (volume.path / "engine.alive").touch()
    monkeypatch.setattr(Volume, "look", lambda self: (RUNNING, (1, 2)))
    async with watching(volume) as watched:
        assert await watched.next() == VolumeSample(RUNNING, alive=None)


async def test_fifos_that_end_faster_than_we_look_prove_nothing(volume: Volume) -> None:
    class Restless(Volume):
        def look(self) -> tuple[EngineStatus | None, FileIdentity | None]:
            FakeScript(self).dies()
            return RUNNING, super().look()[1]

    async with watching(Restless(volume.path)) as watched:
        assert await watched.next() == VolumeSample(RUNNING, alive=None)


async def test_the_volume_goes_and_comes(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume, poll_seconds=0.01) as watched:
        await watched.until(RUNNING, alive=True)
        moved = volume.path.rename(volume.path.with_name("moved"))
        await watched.until(None, alive=None)
        moved.rename(volume.path)
        await watched.until(RUNNING, alive=True)
    script.dies()


async def test_a_flooded_doorbell_costs_little_and_hides_nothing(volume: Volume) -> None:
    class Counted(Volume):
        looks = 0

        def look(self) -> tuple[EngineStatus | None, FileIdentity | None]:
            self.looks += 1
            return super().look()

    counted = Counted(volume.path)
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with suppress(BlockingIOError):
                os.write(script.descriptor, bytes(65536))
            stop.wait(0.0005)

    flooder = threading.Thread(target=flood)
    async with watching(counted) as watched:
        await watched.until(RUNNING, alive=True)
        flooder.start()
        try:
            began = time.monotonic()
            await asyncio.sleep(0.5)
            # One in 50 ms, however long this half second was.
            assert counted.looks <= 3 + (time.monotonic() - began) / 0.05
            looks = counted.looks
            script.says(Phase.STOP_REQUESTED, asked=True, ring=False)
            await watched.until(status(phase=Phase.STOP_REQUESTED, asked=True), alive=True)
            assert counted.looks <= looks + 3
        finally:
            stop.set()
            flooder.join()
        looks = counted.looks
        script.dies()
        await watched.until(status(phase=Phase.STOP_REQUESTED, asked=True), alive=False)
        assert counted.looks <= looks + 3


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_cancelled_watch_leaves_no_descriptor_behind(volume: Volume) -> None:
    script = FakeScript(volume)
    script.says(Phase.RUNNING)
    async with watching(volume) as watched:
        await watched.next()
    before = open_descriptors()
    for _ in range(5):
        async with watching(volume) as watched:
            await watched.next()
    assert open_descriptors() == before
    script.dies()


async def test_an_error_in_the_listener_ends_the_watch(volume: Volume) -> None:
    def broken(sample: VolumeSample) -> None:
        raise RuntimeError(f"cannot take {sample}")

    with pytest.raises(RuntimeError, match="cannot take"):
        await watch(volume, broken)


# Last words


def record(volume: Volume, run: str, phase: str, code: int | None) -> None:
    """Write the status as the script does."""
    body = {"run": run, "generation": "0" * 12, "phase": phase, "asked": False, "code": code}
    (volume.path / ".s").write_text(json.dumps({**body, "started": 1, "changed": 1}))
    (volume.path / ".s").rename(volume.path / "engine.status")
    # The kernel's clock of files ticks every few milliseconds; so does no container that starts again.
    time.sleep(0.02)


def put_aside(volume: Volume) -> None:
    """Begin a run as the script does: first its log, then its status."""
    (volume.path / "engine.log").rename(volume.path / "engine.log.1")
    (volume.path / "engine.log").write_bytes(b"of the next\n")
    time.sleep(0.02)


async def test_the_last_words_of_a_run(volume: Volume) -> None:
    log = volume.path / "engine.log"
    assert await volume.last_words(RUN) == b""
    log.write_bytes(b"of the one before\n")
    put_aside(volume)
    record(volume, RUN, "running", None)
    log.write_bytes(b"dies of this\n")
    assert await volume.last_words(RUN) == b"dies of this\n", "gone without a word"
    record(volume, RUN, "exited", 1)
    assert await volume.last_words(RUN) == b"dies of this\n"
    put_aside(volume)
    assert await volume.last_words(RUN) == b"dies of this\n", "the next run has begun, and nobody has said so yet"
    record(volume, NEXT_RUN, "running", None)
    assert await volume.last_words(RUN) == b"dies of this\n"
    assert await volume.last_words(NEXT_RUN) == b"of the next\n"


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_log_put_aside_while_it_is_read(volume: Volume, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (volume.path / "engine.log").write_bytes(b"dies of this\n")
    record(volume, RUN, "exited", 1)
    read, todo = volume_module._end_of, [put_aside]

    def overtaken(directory: int, name: str) -> tuple[bytes, FileIdentity]:
        if todo and moment == "before":
            todo.pop()(volume)
        result = read(directory, name)
        if todo:
            todo.pop()(volume)
        return result

    monkeypatch.setattr(volume_module, "_end_of", overtaken)
    assert await volume.last_words(RUN) == b"dies of this\n"
    assert not todo


async def test_of_a_long_log_whole_lines_of_its_end(volume: Volume) -> None:
    record(volume, RUN, "exited", 1)
    (volume.path / "engine.log").write_bytes(b"".join(b"line %05d\n" % number for number in range(10_000)))
    words = await volume.last_words(RUN)
    assert (words[:11], words[-11:]) == (b"line 04043\n", b"line 09999\n")
    assert len(words) <= 64 * 1024


@pytest.mark.parametrize("name", ["engine.log", "engine.status"])
@pytest.mark.parametrize("kind", ["none", "fifo", "link", "garbage"])
async def test_whatever_lies_in_a_logs_place_is_no_error(volume: Volume, name: str, kind: str, tmp_path: Path) -> None:
    (volume.path / "engine.log").write_bytes(b"words\n")
    record(volume, RUN, "exited", 1)
    (tmp_path / "secret").write_bytes(b"secret\n")
    there = volume.path / name
    there.unlink()
    if kind == "fifo":
        os.mkfifo(there)
    elif kind == "link":
        there.symlink_to(tmp_path / "secret")
    elif kind == "garbage":
        there.write_bytes(b"\xff\x00")
    assert await volume.last_words(RUN) in (b"", b"\xff\x00" if name == "engine.log" else b"")
