"""Lines of the engine's log, and the load phases they show. Pure: bytes in, lines and phases out.

The log is untrusted: a line may hold anything a client put into a prompt, be 100 MB long, or never end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from wings_proxy.engines.base import LoadPhase
from wings_proxy.lifecycle import Progress

# Longer than any line that means something to us; what follows up to the line's end is dropped.
_LONGEST_LINE: Final = 4096
# Colours and cursor movements (ECMA-48 control sequences).
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]{0,16}[@-~]")
# A progress bar rewrites its line with CR and ends it with LF, if ever.
_LINE_END: Final = re.compile(rb"[\r\n]")


class LineSplitter:
    """Cuts a stream of bytes into lines, in constant memory."""

    def __init__(self) -> None:
        self._rest = b""
        self._dropping = False

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the lines that `data` ends, without their ends, empty ones left out, cut at 4096 bytes."""
        *whole, rest = _LINE_END.split(data)
        for part in whole:
            line, self._rest = self._rest + part, b""
            dropped, self._dropping = self._dropping, False
            if line and not dropped:
                yield _ESCAPES.sub("", line[:_LONGEST_LINE].decode("utf-8", "replace"))
        if self._dropping:
            return
        self._rest += rest
        if len(self._rest) > _LONGEST_LINE:
            yield _ESCAPES.sub("", self._rest[:_LONGEST_LINE].decode("utf-8", "replace"))
            self._rest, self._dropping = b"", True


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
