"""The two containers of `up`: their commands, environments and files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from wings_proxy.handover.launch import engine_stub
from wings_proxy.local.narrator import tail
from wings_proxy.local.plan import LLAMA_SERVER, Plan, llama_shim, program
from wings_proxy.local.pod import ContainerSpec

SIDECAR: Final = "sidecar"
ENGINE: Final = "engine"

_TAIL_BYTES: Final = 16 << 10


def containers(plan: Plan, directory: Path) -> Iterator[ContainerSpec]:
    """Yield the two containers of the pod; makes the directories, the shim and the empty logs they need."""
    volume, programs = directory / "volume", directory / "bin"
    logs = _log_directory(plan.environ)
    for needed in (volume, programs, logs):
        needed.mkdir(parents=True, exist_ok=True)
    engine_environ = dict(plan.environ)
    if plan.llama_shim:
        shim = programs / LLAMA_SERVER
        shim.write_text(llama_shim(), encoding="utf-8")
        shim.chmod(0o755)
        engine_environ["PATH"] = f"{programs}:{plan.environ.get('PATH', os.defpath)}"
    sidecar_environ = {**plan.environ, "SHARED_VOLUME_PATH": str(volume)}
    yield ContainerSpec(
        SIDECAR, (*program("wings_proxy"), "serve"), sidecar_environ, _new_log(logs, SIDECAR, plan.config.port)
    )
    stub = ("sh", "-c", engine_stub(str(volume / "start_command.sh")))
    yield ContainerSpec(ENGINE, stub, engine_environ, _new_log(logs, ENGINE, plan.config.port))


def _log_directory(environ: Mapping[str, str]) -> Path:
    """Return where this user's logs are kept (XDG Base Directory Specification)."""
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        base = Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return base / "wings-infer"


def _new_log(directory: Path, name: str, port: int) -> Path:
    """Return the path of an empty log; the one of the run before becomes `….1`."""
    log = directory / f"{name}-{port}.log"
    with contextlib.suppress(FileNotFoundError):
        log.replace(f"{log}.1")
    log.touch(mode=0o600)
    return log


def last_lines(log: Path, since: int = 0) -> tuple[Sequence[str], int]:
    """Return the end of a log from byte `since` on, fit for a terminal, and how long the log is now."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(since if since <= end else 0, end - _TAIL_BYTES))  # a shorter log began anew
        return tail(file.read(_TAIL_BYTES)), end
