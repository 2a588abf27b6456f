"""Processes that are recognised by a variable in their environment: a test ends only what it started."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

_LOOKS = 20
_PAUSE_SECONDS = 0.001


def marked(mark: str) -> list[int]:
    """Return every living process whose environment has this `NAME=value`."""
    found = []
    for directory in Path("/proc").iterdir():
        # A process may end while it is looked at.
        with suppress(OSError):
            if directory.name.isdecimal() and mark.encode() in _environment(directory).split(b"\0"):
                found.append(int(directory.name))
    return found


def command_line(pid: int) -> str:
    """Return the words it was started with, parted by blanks; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal; False for one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _environment(directory: Path) -> bytes:
    """Return it, of a process between two programs too: inside `exec` it has none for a moment, and is not gone."""
    for _ in range(_LOOKS):
        if environment := (directory / "environ").read_bytes():
            return environment
        state, *fields = (directory / "stat").read_text().rpartition(") ")[2].split()
        # Of the kernel's threads, and of who has ended and is not waited for, no memory is left.
        if state in "ZX" or fields[19] == "0":
            return b""
        time.sleep(_PAUSE_SECONDS)
    return b""
