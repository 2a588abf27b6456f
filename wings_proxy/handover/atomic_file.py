"""Small files in a directory that somebody else may write to as well: read without trust, replaced in one step.

Blocking system calls; the caller decides which thread waits for them. Everything raises plain ``OSError``.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# A link is never followed, and a FIFO lying in a file's place never makes us wait for its writer.
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REPLACE_ATTEMPTS: Final = 3


@contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory, so that one operation stays in one directory whatever happens to the path."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_regular(directory: int, name: str) -> Iterator[int]:
    """A descriptor to read the regular file ``name``; ``OSError`` if anything else lies there."""
    descriptor = os.open(name, _READ_FLAGS, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        yield descriptor
    finally:
        os.close(descriptor)


def read_small(directory: int, name: str, limit: int) -> bytes:
    """The file's first ``limit + 1`` bytes at most: one more than allowed shows that it is too long."""
    with opened_regular(directory, name) as descriptor:
        return os.read(descriptor, limit + 1)


def replace(directory: int, name: str, data: bytes, mode: int, *, durable: bool) -> None:
    """Put ``data`` under ``name`` in one step: a reader sees the old file or the new one, whole.

    So does whoever comes after a power failure, if ``durable``. What lies there is replaced unless it is a directory:
    a link itself, not what it points to.
    """
    for _ in range(_REPLACE_ATTEMPTS - 1):
        # Somebody may take our temporary file for a leftover: two sidecars overlap for a moment in a restart.
        with suppress(FileNotFoundError):
            return _replace_once(directory, name, data, mode, durable=durable)
    return _replace_once(directory, name, data, mode, durable=durable)


def remove_leftovers(directory: int, names: tuple[str, ...]) -> None:
    """Remove temporary files of a writer that was killed in :func:`replace`; they may be what fills the volume."""
    prefixes = tuple(f".{name}." for name in names)
    for entry in os.listdir(directory):
        if entry.startswith(prefixes):
            # Not ours to insist: a directory of that name, or another user's file in a sticky directory, stays.
            with suppress(OSError):
                os.unlink(entry, dir_fd=directory)


def _replace_once(directory: int, name: str, data: bytes, mode: int, *, durable: bool) -> None:
    temporary = f".{name}.{secrets.token_hex(8)}"
    descriptor = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=directory)
    try:
        try:
            _write_all(descriptor, data)
            os.fchmod(descriptor, mode)  # not by open(): the umask would have a say
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    if durable:
        os.fsync(directory)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
