"""Lines of the engine's log, and the load phases they show. Pure: bytes in, lines and phases out.

The log is untrusted: a line may hold anything a client put into a prompt, be 100 MB long, or never end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from wings_proxy.engines.base import LoadPhase
from wings_proxy.lifecycle.state import Progress

# Longer than any line that means something to us; what follows up to the line's end is dropped.
_LONGEST_LINE: Final = 4096
# Colours and cursor movements (ECMA-48 control sequences).
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]{0,16}[@-~]")
# A progress bar rewrites its line with CR and ends it with LF, if ever.
_LINE_END: Final = re.compile(rb"[\r\n]")
# What uvicorn writes of a probe or a look at the metrics, in front of it the date or the process.
_ECHO: Final = re.compile(
    r"(?:\(\w+ pid=\d+\) |\[[\w :-]{1,60}\] )?"
    r'INFO: +127\.0\.0\.1:\d+ - "GET /(?:health|metrics|v1/models) HTTP/1\.[01]" \d{3}'
)


def is_echo(line: str) -> bool:
    """Whether the engine only notes that we asked it: no sign that it gets on, for we never stop asking."""
    return _ECHO.match(line) is not None


@dataclass(slots=True)
class LogCounts:
    """How much of the engine's log was read since we started, and how much was not."""

    lines: int = 0
    dropped_bytes: int = 0
    """Too much at once, of a line too long, or the rest of a line whose head was passed over. What stood there before
    we came is not among them, but for the rest of such a line."""


class LineSplitter:
    """Cuts a stream of bytes into lines, in constant memory."""

    def __init__(self, counts: LogCounts | None = None) -> None:
        """Count in *counts*."""
        self._counts = counts or LogCounts()
        self._rest = b""
        self._dropping = False

    def skip(self) -> None:
        """Forget the line that has begun: what comes next is from the middle of another."""
        self.restart()
        self._dropping = True

    def restart(self) -> None:
        """Forget the line that has begun: what comes next begins another."""
        self._counts.dropped_bytes += len(self._rest)
        self._rest, self._dropping = b"", False

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the lines that `data` ends, without their ends, empty ones left out, cut at 4096 bytes."""
        *whole, rest = _LINE_END.split(data)
        for part in whole:
            line, self._rest = self._rest + part, b""
            if self._dropping:
                self._counts.dropped_bytes += len(line)
                self._dropping = False
            elif line:
                yield self._line(line)
        if self._dropping:
            self._counts.dropped_bytes += len(rest)
            return
        self._rest += rest
        if len(self._rest) > _LONGEST_LINE:
            yield self._line(self._rest)
            self._rest, self._dropping = b"", True

    def _line(self, line: bytes) -> str:
        self._counts.lines += 1
        self._counts.dropped_bytes += max(0, len(line) - _LONGEST_LINE)
        return _ESCAPES.sub("", line[:_LONGEST_LINE].decode("utf-8", "replace"))


class LoadProgress:
    """Follows an engine's load through its log lines."""

    def __init__(self, phases: Sequence[LoadPhase]) -> None:
        self._phases = phases
        self._order = {phase.name: place for place, phase in reversed(list(enumerate(phases)))}
        self._reached = -1

    def see(self, line: str) -> Progress | None:
        """Return the progress this line shows, or None; a phase that is over does not come back."""
        for phase in self._phases:
            found = phase.line.match(line)
            if found is None or self._order[phase.name] < self._reached:
                continue
            self._reached = self._order[phase.name]
            groups = found.groupdict()
            if "done" not in groups:
                return Progress(phase.name)
            done, total = int(groups["done"]), int(groups["total"])
            return Progress(phase.name, min(1.0, done / total)) if total else Progress(phase.name)
        return None
