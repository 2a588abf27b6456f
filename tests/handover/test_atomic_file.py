"""Files that appear whole or not at all, on a real directory with a system that fails on demand."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wings_proxy.handover.atomic_file import opened_directory, opened_regular, read_small, remove_leftovers, replace


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    with opened_directory(tmp_path) as descriptor:
        yield descriptor


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system calls made, in order."""
    steps: list[str] = []

    def noting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def noted(first: int | str, *arguments: object, **options: object) -> object:
            on_directory = isinstance(first, int) and stat.S_ISDIR(os.fstat(first).st_mode)
            steps.append(f"{name} directory" if on_directory else name)
            return real(first, *arguments, **options)

        return noted

    for name in ("write", "fchmod", "fsync", "rename"):
        monkeypatch.setattr(f"wings_proxy.handover.atomic_file.os.{name}", noting(name, getattr(os, name)))
    return steps


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_we_go_on(
    directory: int, steps: list[str]
) -> None:
    replace(directory, "file", b"content", 0o644, durable=True)
    assert steps == ["write", "fchmod", "fsync", "rename", "fsync directory"]


def test_what_need_not_last_waits_for_no_disk(directory: int, tmp_path: Path, steps: list[str]) -> None:
    replace(directory, "file", b"content", 0o600, durable=False)
    assert steps == ["write", "fchmod", "rename"]
    assert (tmp_path / "file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_write_that_takes_only_a_part_is_continued(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(
        "wings_proxy.handover.atomic_file.os.write", lambda descriptor, data: real(descriptor, data[:100])
    )
    content = bytes(range(256)) * 4
    replace(directory, "file", content, 0o644, durable=True)
    assert (tmp_path / "file").read_bytes() == content


def test_a_temporary_file_taken_away_by_another_sidecar_is_written_again(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename
    taken: list[str] = []

    def tidied_up(source: str, target: str, **descriptors: int) -> None:
        if not taken:
            taken.append(source)
            (tmp_path / source).unlink()
        real(source, target, **descriptors)

    monkeypatch.setattr("wings_proxy.handover.atomic_file.os.rename", tidied_up)
    replace(directory, "file", b"content", 0o644, durable=True)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]
    assert taken[0].startswith(".file.")


def test_one_that_is_always_taken_away_is_given_up(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def vanished(source: str, target: str, **descriptors: int) -> None:
        tries.append(source)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr("wings_proxy.handover.atomic_file.os.rename", vanished)
    with pytest.raises(FileNotFoundError):
        replace(directory, "file", b"content", 0o644, durable=True)
    assert len(set(tries)) == 3


def test_a_failure_leaves_the_old_file_and_nothing_else(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def full(descriptor: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("wings_proxy.handover.atomic_file.os.write", full)
    with pytest.raises(OSError, match="No space left"):
        replace(directory, "file", b"new", 0o644, durable=True)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_only_our_leftovers_are_removed(directory: int, tmp_path: Path) -> None:
    for name in (".file.0123456789abcdef", ".file.", ".filed.1", ".other.1", "file", "file.1"):
        (tmp_path / name).touch()
    (tmp_path / ".file.directory").mkdir()
    remove_leftovers(directory, ("file", "third"))
    assert names(tmp_path) == [".file.directory", ".filed.1", ".other.1", "file", "file.1"]


def test_a_small_file_is_read_and_a_long_one_shows_that_it_is_too_long(directory: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_small(directory, "file", 10) == b"0123456789"
    assert read_small(directory, "file", 5) == b"012345"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_only_regular_files_are_read(directory: int, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=r"not a regular file|Too many levels"), opened_regular(directory, "file"):
        pass


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), opened_directory(tmp_path / "file"):
        pass
