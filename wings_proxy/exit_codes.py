"""What each exit code of `wings-proxy` means: the source of `--help` and of the README's table."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Every code a command ends with by itself; `meaning` is for people."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        """Make a member of a number and its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done; `serve` and `up`: stopped because somebody asked for it"
    FAILED = 1, "could not go on, or an answer was not complete; the last lines say why"
    NOT_STARTED = 2, "wrong configuration or arguments: nothing was started or written, one line for each mistake"
    INTERRUPTED = 130, "ended at once by Ctrl-C (SIGINT): the first one of `check` and `render`, the second one of `up`"
    BROKEN_PIPE = 141, "nobody reads the output any more, as after `head -1` took its line"
    TERMINATED = 143, "ended at once by SIGTERM before anything was started, or `serve` by a second signal"
