"""How many files the process may have open: each client is one, and its request to the engine another."""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> int:
    """Take what the system would give; return how many descriptors there may be.

    The soft limit is 1024 for the sake of programs that use select(2), and this is none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft
