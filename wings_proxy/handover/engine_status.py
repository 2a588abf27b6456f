"""The file ``engine.status``: what the launch script says about its run of the engine.

Pure, and total: the engine's container writes the file, so any bytes may be in it, and whatever is not exactly a
status is ``None``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_STATUS_BYTES: Final = 1024
"""No status is longer (the script's have about 220 bytes); a reader needs to read no further."""

_RUN: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GENERATION: Final = re.compile(r"[0-9a-f]{12}")
_KEYS: Final = frozenset(("run", "generation", "phase", "asked", "code", "started", "changed"))
_MAX_EPOCH_SECONDS: Final = 2**53


class Phase(StrEnum):
    """How far a run is; it only ever moves down this list, and may skip the middle."""

    RUNNING = "running"
    STOP_REQUESTED = "stop_requested"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One run of the engine, as its launch script last described it.

    ``asked``: a signal asked for the end before it came; true in ``STOP_REQUESTED``, false in ``RUNNING``.
    ``code``: the engine's exit code as a shell counts it, 0 to 255, 128 + n after signal n; exactly in ``EXITED``.
    ``started``, ``changed``: seconds since the epoch on the engine container's clock, for display only.
    """

    run: str
    generation: str
    phase: Phase
    asked: bool
    code: int | None
    started: int
    changed: int


def parse_status(data: bytes) -> EngineStatus | None:
    """Read the content of ``engine.status``; ``None`` for anything that is not exactly a status. Never raises."""
    if len(data) > MAX_STATUS_BYTES:
        return None
    try:
        return _status(json.loads(data, object_pairs_hook=_object))
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs) or fields.keys() != _KEYS:
        raise ValueError("not the keys of a status, each once")
    return fields


def _status(fields: object) -> EngineStatus:
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    status = EngineStatus(
        run=_text(_RUN, fields["run"]),
        generation=_text(_GENERATION, fields["generation"]),
        phase=Phase(fields["phase"]),
        asked=_boolean(fields["asked"]),
        code=None if fields["code"] is None else _integer(fields["code"], 255),
        started=_integer(fields["started"], _MAX_EPOCH_SECONDS),
        changed=_integer(fields["changed"], _MAX_EPOCH_SECONDS),
    )
    if (status.phase is Phase.EXITED) != (status.code is not None):
        raise ValueError("an exit code exactly when the engine has exited")
    if status.phase is not Phase.EXITED and status.asked != (status.phase is Phase.STOP_REQUESTED):
        raise ValueError("asked exactly when a stop was requested")
    return status


def _text(pattern: re.Pattern[str], value: object) -> str:
    if not (isinstance(value, str) and pattern.fullmatch(value)):
        raise ValueError("not a text of the expected form")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not a boolean")
    return value


def _integer(value: object, most: int) -> int:
    # bool is an int to Python, not to us.
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not an integer in range")
    return value
