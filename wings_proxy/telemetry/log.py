"""Our own log lines: one line an event, JSON or plain, control characters escaped."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

from wings_proxy.config.kinds import UNPRINTABLE, shown
from wings_proxy.telemetry.line_writer import LineWriter

_ROOT: Final = "wings_proxy"
_KEPT_SECONDS: Final = 0.1
_MOST_KEPT: Final = 512
# At the end; a reader that is not there will not come.
_PATIENCE_SECONDS: Final = 0.5
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


class Lines:
    """Writes lines in their order: news at once, others together, one system call for those of a tenth of a second.

    A reader that is gone or does not read, or a disk that is full, costs lines, counted in `lost`, never a request.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """Write to *stream*; without one, which is what Python makes of a closed descriptor, every line is lost."""
        self._stream = stream
        self._writer = _writer_for(stream)
        self._lines: list[str] = []
        self._due = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """Lines nobody will see."""
        return self._lost + (self._writer.lost if self._writer is not None else 0)

    def write(self, line: str) -> None:
        """Write a line at once, and what was kept before it."""
        self._lines.append(line)
        self._hand_over()

    def keep(self, line: str) -> None:
        """Keep a line for the next writing, a moment from now."""
        self._lines.append(line)
        if len(self._lines) >= _MOST_KEPT:
            self._hand_over()
        elif not self._due:
            try:
                asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._write_due)
            except RuntimeError:
                self._hand_over()  # nobody would come back for it
            else:
                self._due = True

    def flush(self) -> None:
        """Write what is kept, and wait a moment until it is written."""
        self._hand_over()
        if self._writer is not None:
            self._writer.flush(_PATIENCE_SECONDS)

    def close(self) -> None:
        """Write what is kept, and no more."""
        self._hand_over()
        if self._writer is not None:
            self._writer.close(_PATIENCE_SECONDS)

    def _hand_over(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        text = "\n".join(lines) + "\n"
        if self._writer is not None:
            self._writer.write(text.encode("utf-8", "backslashreplace"), len(lines))
            return
        try:
            if self._stream is None:
                raise BrokenPipeError
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._lost += len(lines)

    def _write_due(self) -> None:
        self._due = False
        self._hand_over()


def _writer_for(stream: TextIO | None) -> LineWriter | None:
    """Return a writer past the stream's own buffer: at the end the interpreter would wait for that one for ever."""
    try:
        return None if stream is None else LineWriter(stream.fileno())
    except OSError:
        return None  # a stream in memory


class _LineHandler(logging.Handler):
    """Puts records among the lines."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line."""
        self._lines.write(self.format(record))

    def flush(self) -> None:
        """Write what is kept; `logging` calls it when the process ends."""
        self._lines.flush()

    def close(self) -> None:
        """Write what is kept, and no more; `logging` calls it last."""
        self._lines.close()
        super().close()


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up_logging(*, form: str, level: str) -> Lines:
    """Send our lines, and the complaints of aiohttp and asyncio, to standard output; return what writes them."""
    lines = Lines(sys.stdout)
    handler = _LineHandler(lines)
    handler.setFormatter(_JsonFormatter() if form == "json" else _PlainFormatter())
    for name in (_ROOT, "aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name != _ROOT else level.upper())
    return lines
