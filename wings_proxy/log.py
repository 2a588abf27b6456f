"""Our own log lines: one line an event, JSON or plain, control characters escaped."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from wings_proxy.setting_kinds import shown

_ROOT: Final = "wings_proxy"


class _JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …fields}`; what a record carries as `fields` is put in as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; json escapes what could end it."""
        line: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _PlainFormatter(logging.Formatter):
    """`time level message key=value …`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, a traceback indented under it."""
        fields = " ".join(f"{name}={shown(value)}" for name, value in getattr(record, "fields", {}).items())
        message = shown(record.getMessage(), limit=2000)
        line = f"{_time_of(record)} {record.levelname.lower():<7} {message}{' ' if fields else ''}{fields}"
        if record.exc_info:
            line += "\n  " + self.formatException(record.exc_info).replace("\n", "\n  ")
        return line


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up_logging(*, form: str, level: str, access: bool) -> None:
    """Send everything under `wings_proxy` to standard output; aiohttp's and asyncio's complaints too."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter() if form == "json" else _PlainFormatter())
    for name in (_ROOT, "aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name != _ROOT else level.upper())
    logging.getLogger(f"{_ROOT}.access").setLevel(logging.INFO if access else logging.CRITICAL)
