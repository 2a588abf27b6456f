"""One sidecar a volume."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wings_proxy.handover.volume_lock import VolumeLock


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def takes(lock: VolumeLock, path: Path) -> bool:
    with opened(path) as directory:
        return lock.take(directory)


def test_the_first_holds_it_until_it_lets_go(tmp_path: Path) -> None:
    first, second = VolumeLock(), VolumeLock()
    assert takes(first, tmp_path)
    assert takes(first, tmp_path)
    assert not takes(second, tmp_path)
    first.release()
    first.release()
    assert takes(second, tmp_path)
    second.release()


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    program = "import os,sys\nfrom wings_proxy.handover.volume_lock import VolumeLock\n"
    program += "print(VolumeLock().take(os.open(sys.argv[1], os.O_RDONLY)), flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        lock = VolumeLock()
        assert not takes(lock, tmp_path)
        holder.kill()
        holder.wait()
    assert takes(lock, tmp_path)
    lock.release()


def test_another_directory_in_its_place_is_another_lock(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    lock, other = VolumeLock(), VolumeLock()
    assert takes(lock, volume)
    volume.rename(tmp_path / "away")
    volume.mkdir()
    assert takes(lock, volume)
    assert takes(other, tmp_path / "away")
    assert not takes(other, volume)
    lock.release()
    other.release()


def test_a_file_system_without_locks_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert takes(VolumeLock(), tmp_path)
    assert takes(VolumeLock(), tmp_path)
