"""Small file systems for tests, made as root or with a `sudo` that asks for nothing; without, a test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def as_root(*command: str) -> None:
    """Run a command as root."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if prefix and (
        shutil.which("sudo") is None
        or subprocess.run([*prefix, "true"], capture_output=True, timeout=100).returncode != 0
    ):
        pytest.skip("needs root to mount a file system")
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=100)
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def tmpfs(path: Path, *, size: str) -> Iterator[None]:
    """A file system in memory of `size` bytes at `path`, writable by everybody; as an emptyDir with a sizeLimit."""
    as_root("mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(path))
    try:
        yield
    finally:
        as_root("umount", "--lazy", str(path))


def remount(path: Path, options: str) -> None:
    """Change a mounted file system: `ro` or `rw`."""
    as_root("mount", "-o", f"remount,{options}", str(path))
