"""Nobody is left behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from wings_proxy.local.process_tree import Process, descendants, has_parent_death_signal, read_processes


def test_descendants_are_all_below_and_nobody_else() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 10, 13: 12, 20: 1, 21: 20}

    assert descendants(10, parents) == {11, 12, 13}
    assert descendants(21, parents) == set()
    assert descendants(99, parents) == set()


def test_a_circle_of_parents_ends() -> None:
    # A pid reused between two reads can look like its own grandparent.
    assert descendants(1, {2: 1, 3: 2, 2_000: 3, 1: 2_000}) == {1, 2, 3, 2_000}


def test_processes_are_read_whatever_they_call_themselves(tmp_path: Path) -> None:
    for pid, line in [
        (5, b"5 (sh) S 1 5 5"),
        (6, b"6 (a) Z 1 (b) R 5 6 6"),
        (7, b"7 (\xff\n) Z 5 7 7"),
    ]:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_bytes(line)
    (tmp_path / "8").mkdir()  # ended between the two looks
    (tmp_path / "self").mkdir()

    assert sorted(read_processes(tmp_path), key=lambda process: process.pid) == [
        Process(5, 1, dead=False),
        Process(6, 5, dead=False),
        Process(7, 5, dead=True),
    ]


@pytest.mark.parametrize(("usage", "there"), [("--pdeathsig keep", True), ("BusyBox", False)])
def test_whether_the_kernel_can_tell_the_children(
    usage: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "setpriv"
    program.write_text(f"#!/bin/sh\necho '{usage}'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    assert has_parent_death_signal() is there


def test_without_setpriv_there_is_no_such_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert has_parent_death_signal() is False


@pytest.mark.slow
def test_an_orphan_in_a_session_of_its_own_is_found_and_a_known_tree_spared(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio, os, subprocess, sys
        from wings_proxy.local.process_tree import become_subreaper, end_strangers, read_processes

        async def main():
            become_subreaper()
            known = subprocess.Popen(["sh", "-c", "sleep 60 & wait"])
            # Two processes in sessions of their own whose parents are gone.
            subprocess.run(["sh", "-c", "setsid sh -c 'setsid sleep 60 & sleep 60' & sleep 0.3"])
            print(await end_strangers([known.pid]), known.poll())
            print(sum(process.parent == os.getpid() for process in read_processes()))
            print(await end_strangers([]))
            print([p for p in read_processes() if p.parent == os.getpid() and p.pid != known.pid])

        asyncio.run(main())
        """
    )
    result = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, timeout=100)

    assert result.stderr == ""
    ended_strangers, own_children, ended_known, left = result.stdout.splitlines()
    assert ended_strangers == "3 None"
    assert own_children == "1"
    assert ended_known == "2"
    assert left == "[]"
