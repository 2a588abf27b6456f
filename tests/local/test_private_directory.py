"""One private directory a run."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from wings_proxy.local.private_directory import places, private_directory


def test_memory_first_then_disk() -> None:
    assert list(places({"XDG_RUNTIME_DIR": "/run/user/1", "TMPDIR": "/t"})) == [
        Path("/dev/shm"),
        Path("/run/user/1"),
        Path("/t"),
    ]
    assert list(places({"TMPDIR": "/t"})) == [Path("/dev/shm"), Path("/t")]


def test_only_its_owner_may_enter_and_it_goes_with_the_run(tmp_path: Path) -> None:
    with private_directory([tmp_path]) as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert list(tmp_path.iterdir()) == [directory]
        (directory / "volume").mkdir()
        (directory / "volume" / "start_command.sh").touch()

    assert list(tmp_path.iterdir()) == []


def test_it_goes_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), private_directory([tmp_path]):
        raise RuntimeError

    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_program_may_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noexec, good = tmp_path / "shm", tmp_path / "tmp"
    noexec.mkdir()
    good.mkdir()
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC if path == noexec else os.ST_NOSUID)
    )

    with private_directory([tmp_path / "missing", noexec, good]) as directory:
        assert directory.parent == good


def test_no_place_at_all_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"no place for a private directory: .*/a, .*/b; set TMPDIR to one"),
        private_directory([tmp_path / "a", tmp_path / "b"]),
    ):
        pass


def test_a_killed_runs_directory_goes_with_the_next_run_and_a_live_ones_stays(tmp_path: Path) -> None:
    dead = tmp_path / "wings-infer-up-dead"
    (dead / "volume").mkdir(parents=True)
    stranger = tmp_path / "wings-infer-uploads"
    stranger.mkdir()

    with private_directory([tmp_path]) as first:
        assert not dead.exists()
        with private_directory([tmp_path]) as second:
            assert sorted(tmp_path.iterdir()) == sorted([first, second, stranger])


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis").touch()
    (tmp_path / "wings-infer-up-x").symlink_to(target)

    with private_directory([tmp_path]):
        pass

    assert (target / "thesis").exists()
