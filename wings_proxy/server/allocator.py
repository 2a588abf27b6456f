"""How much freed memory the C library keeps for the next use.

uvloop reads up to 256 KiB at a time. By default glibc gives memory of that size back to the kernel as soon as it is
free, at the end of each callback, and asks for it again in the next: page faults and cleared pages were half of what a
body of 1 MB cost. Keeping a few MiB costs nothing but them (mallopt(3)).
"""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = (-1, 8 * 1024 * 1024)
"""M_TRIM_THRESHOLD: free bytes at the heap's end that are kept."""
_MMAP_THRESHOLD: Final = (-3, 1024 * 1024)
"""M_MMAP_THRESHOLD: from which size on memory is mapped, and unmapped when it is free. Setting either ends glibc's own
adjusting of both, so both are set."""


def keep_freed_memory() -> bool:
    """Have the C library keep some MiB of freed memory; False if it is not glibc and has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, size) for option, size in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
