"""The processes below this one, so that ending a tree leaves nobody behind.

A process group is not enough: the launch script gives the engine a group of its own, and engines fork. With this
process as *child subreaper* (prctl(2)) everything below that loses its parent becomes our child, instead of init's,
and stays in sight.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>
_LOOKS: Final = 500
_LOOK_SECONDS: Final = 0.01


def become_subreaper() -> None:
    """Adopt every orphan among our descendants from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    """Return all processes below `root`, given each process's parent."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    unvisited = list(children.get(root, ()))
    while unvisited:
        pid = unvisited.pop()
        if pid not in found:
            found.add(pid)
            unvisited += children.get(pid, ())
    return found


async def end_strangers(known: Collection[int]) -> int:
    """SIGKILL all our descendants but the trees of the `known` children; return how many there were.

    Looks again until nobody is left, because a process may fork between the look and the signal; gives up on those
    that the kernel does not let die (blocked in a device).
    """
    own, met = os.getpid(), set[int]()
    for _ in range(_LOOKS):
        processes = list(read_processes())
        parents = {process.pid: process.parent for process in processes}
        spared = set(known).union(*(descendants(pid, parents) for pid in known))
        strangers = descendants(own, parents) - spared
        if not strangers:
            break
        met |= strangers
        for process in processes:
            if process.pid not in strangers:
                continue
            if not process.dead:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            elif process.parent == own:
                _reap(process.pid)
        await asyncio.sleep(_LOOK_SECONDS)
    return len(met)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@dataclass(frozen=True, slots=True)
class Process:
    """One process as `/proc` shows it; `dead` is a zombie that nobody has waited for yet."""

    pid: int
    parent: int
    dead: bool


def read_processes(proc: Path = Path("/proc")) -> Iterator[Process]:
    """Look at every process of the machine (of our PID namespace) once."""
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            line = (directory / "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # proc_pid_stat(5): the name stands in parentheses and may hold anything, more parentheses included.
        state, parent = line.rpartition(b")")[2].split()[:2]
        yield Process(int(directory.name), int(parent), dead=state in (b"Z", b"X"))


def has_parent_death_signal() -> bool:
    """Tell whether `setpriv --pdeathsig` is there (util-linux 2.33 and later; not in BusyBox)."""
    try:
        usage = subprocess.run(("setpriv", "--help"), capture_output=True, check=False)
    except OSError:
        return False
    return b"--pdeathsig" in usage.stdout
