"""A directory for one run that only this user can enter, gone when the run is over."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "wings-infer-up-"


def places(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield where such a directory may be made, best first: in memory, as the pod's volume is, else on disk."""
    yield Path("/dev/shm")  # noqa: S108 - the directory made in it is private
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute():
        yield runtime
    yield Path(environ.get("TMPDIR") or tempfile.gettempdir())


@contextmanager
def private_directory(candidates: Iterable[Path]) -> Iterator[Path]:
    """Make a 0700 directory in the first place where files can be written and executed, and remove it at the end.

    Directories of runs that were killed are removed first. Raises `OSError` when no place will do.
    """
    candidates = list(candidates)
    for place in candidates:
        _remove_left_behind(place)
    for place in candidates:
        if _usable(place):
            # Locked before it has the name that `_remove_left_behind` looks for.
            new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
            lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_SH)
            directory = new.rename(place / new.name.removeprefix("."))
            break
    else:
        raise OSError(f"no place for a private directory: {', '.join(map(str, candidates))}; set TMPDIR to one")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _usable(place: Path) -> bool:
    """Tell whether a program put there could be run: a container's /dev/shm is often mounted `noexec`."""
    try:
        return os.access(place, os.W_OK | os.X_OK) and not os.statvfs(place).f_flag & os.ST_NOEXEC
    except OSError:
        return False


def _remove_left_behind(place: Path) -> None:
    """Remove our directories whose run is over: a run holds its lock until it ends, however it ends."""
    for directory in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)
