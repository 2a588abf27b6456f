"""The person's end of `wings-proxy up`: lines, and on a terminal one more below them that is redrawn in place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Final, TextIO

_ERASE: Final = "\r\x1b[2K"
_WIDTH: Final = 80


class Terminal:
    """Writes to `stream`, standard error; standard output is for answers.

    What cannot be written is not: the terminal may be gone, and what was started goes on.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        """Redraw where the stream is a terminal that can, in colour unless NO_COLOR (no-color.org) is set."""
        self._stream = stream
        self.is_live = stream.isatty() and environ.get("TERM", "dumb") not in ("", "dumb")
        self.has_colour = self.is_live and not environ.get("NO_COLOR")
        self._shown = ""
        self._hidden = False

    @property
    def width(self) -> int:
        """Columns the redrawn line may take; one is left free, for some terminals wrap when the last is written."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            columns = 0
        # A terminal nobody has told its size says 0.
        return (columns or _WIDTH) - 1

    def say(self, line: str) -> None:
        """Print one line that stays."""
        self._write(f"{self._erased()}wings-proxy: {line}\n{self._drawn()}")

    def show(self, line: str) -> None:
        """Redraw the line below all others; nothing where there is no terminal."""
        if self.is_live and line != self._shown:
            erased = self._erased()
            self._shown = line
            self._write(erased + self._drawn())

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Keep the redrawn line away while somebody else writes on the terminal."""
        self._write(self._erased())
        self._hidden = True
        try:
            yield
        finally:
            self._hidden = False
            self._write(self._drawn())

    def _erased(self) -> str:
        return _ERASE if self._shown and not self._hidden else ""

    def _drawn(self) -> str:
        return "" if self._hidden else self._shown

    def _write(self, text: str) -> None:
        if text:
            with contextlib.suppress(OSError):
                self._stream.write(text)
                self._stream.flush()
