"""The file ``sidecar.record``: what the sidecar knows of the engine's run and its next process could not find out.

Pure. The engine's container can write this file too, so any bytes may be in it: whatever is not exactly a record is
``None``, and all that a record can do is to be wrong about how long ago a run began and whether it has served.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

MAX_RECORD_BYTES: Final = 1024
"""No record is longer (ours have about 200 bytes); a reader needs to read no further."""

_RUN: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GENERATION: Final = re.compile(r"[0-9a-f]{12}")
_KEYS: Final = frozenset(("run", "generation", "ready", "began", "loaded_generation", "load_seconds"))
# Seconds; no load takes a week, and no machine has been up for three hundred years.
_LONGEST_LOAD: Final = 7 * 86_400.0
_LATEST: Final = 1e10


@dataclass(frozen=True, slots=True)
class SidecarRecord:
    """What is known of one run.

    ``ready``: it has answered as an engine that serves. ``began``: when it was first seen, seconds of the machine's
    monotonic clock, which all its containers share; ``None`` if it was there before us. ``load_seconds``: how long the
    last load that was seen whole took, of the script ``loaded_generation``; both ``None`` if none was.
    """

    run: str
    generation: str
    ready: bool
    began: float | None
    loaded_generation: str | None
    load_seconds: float | None

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields).encode() + b"\n"


def parse_record(data: bytes) -> SidecarRecord | None:
    """Read the content of ``sidecar.record``; ``None`` for anything that is not exactly a record. Never raises."""
    if len(data) > MAX_RECORD_BYTES:
        return None
    try:
        return _record(json.loads(data, object_pairs_hook=_object))
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs) or fields.keys() != _KEYS:
        raise ValueError("not the keys of a record, each once")
    return fields


def _record(fields: object) -> SidecarRecord:
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    loaded, seconds = fields["loaded_generation"], fields["load_seconds"]
    if (loaded is None) != (seconds is None):
        raise ValueError("how long a load took exactly where it is known whose")
    if not isinstance(fields["ready"], bool):
        raise ValueError("not a boolean")
    return SidecarRecord(
        run=_text(_RUN, fields["run"]),
        generation=_text(_GENERATION, fields["generation"]),
        ready=fields["ready"],
        began=None if fields["began"] is None else _seconds(fields["began"], _LATEST),
        loaded_generation=None if loaded is None else _text(_GENERATION, loaded),
        load_seconds=None if seconds is None else _seconds(seconds, _LONGEST_LOAD),
    )


def _text(pattern: re.Pattern[str], value: object) -> str:
    if not (isinstance(value, str) and pattern.fullmatch(value)):
        raise ValueError("not a text of the expected form")
    return value


def _seconds(value: Any, most: float) -> float:
    # bool is an int to Python, not to us; NaN is in no range.
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError("not a number of seconds in range")
    return float(value)
