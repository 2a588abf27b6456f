"""Our own log lines: one line an event, JSON or plain, control characters escaped."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from wings_proxy.setting_kinds import UNPRINTABLE, shown

_ROOT: Final = "wings_proxy"
_ACCESS: Final = f"{_ROOT}.access"
_KEPT_SECONDS: Final = 0.1
_MOST_KEPT: Final = 512
# Of one message or field, for people.
_LONGEST: Final = 2000


class _JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …fields}`; what a record carries as `fields` is put in as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what json leaves as it is, but a terminal would act on or refuse, is escaped too."""
        line: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        return UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


class _PlainFormatter(logging.Formatter):
    """`time level message key=value …`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, a traceback indented under it."""
        fields = " ".join(
            f"{name}={shown(value, limit=_LONGEST)}" for name, value in getattr(record, "fields", {}).items()
        )
        message = shown(record.getMessage(), limit=_LONGEST)
        line = f"{_time_of(record)} {record.levelname.lower():<7} {message}{' ' if fields else ''}{fields}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n  {shown(part, limit=_LONGEST)}" for part in traceback)
        return line


class _LineHandler(logging.Handler):
    """Writes what is news at once, and access lines together: one system call for the requests of a tenth of a second.

    A reader that is gone or a disk that is full costs lines, counted in `lost`, never a request.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._due = False
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or keep it for the next writing."""
        self._lines.append(self.format(record))
        if record.name != _ACCESS or len(self._lines) >= _MOST_KEPT:
            self.flush()
        elif not self._due:
            try:
                asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._write_due)
            except RuntimeError:
                self.flush()  # nobody would come back for it
            else:
                self._due = True

    def flush(self) -> None:
        """Write what is kept; also called by `logging` when the process ends."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += len(lines)

    def _write_due(self) -> None:
        self._due = False
        self.flush()


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up_logging(*, form: str, level: str, access: bool) -> None:
    """Send everything under `wings_proxy` to standard output; aiohttp's and asyncio's complaints too."""
    handler = _LineHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter() if form == "json" else _PlainFormatter())
    for name in (_ROOT, "aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name != _ROOT else level.upper())
    logging.getLogger(_ACCESS).setLevel(logging.INFO if access else logging.CRITICAL)
