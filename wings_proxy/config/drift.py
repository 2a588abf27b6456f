"""Whether the configuration file still is what it was when it was read.

A mounted ConfigMap changes under a running pod (Kubernetes: "Mounted ConfigMaps are updated automatically").
That is reported, and nothing else is done: sidecar and engine keep what they were started with until they next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

# The kubelet itself takes up to a minute to bring a change of a ConfigMap into the pod.
_EVERY_SECONDS: Final = 5.0
# More than the loader reads: what is longer than it allows differs anyhow.
_LARGEST_FILE: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConfigFileSeen:
    """The configuration file has become another one; `changed`: than what was read at the start."""

    changed: bool


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The configuration file and the SHA-256 of what it held; `digest` is None if it could not be read."""

    path: Path
    digest: bytes | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Remember what the file holds now. Blocking."""
        return cls(path, _digest(path))

    def has_changed(self) -> bool:
        """Whether it holds anything else now; a file that cannot be read any more does. Blocking."""
        return _digest(self.path) != self.digest


async def watch_config_file(
    file: ConfigFile, emit: Callable[[ConfigFileSeen], None], *, every_seconds: float = _EVERY_SECONDS
) -> None:
    """Call `emit` whenever the file has become another one, or the old one again; runs until cancelled."""
    changed = False
    while True:
        await asyncio.sleep(every_seconds)
        if await asyncio.to_thread(file.has_changed) != changed:
            changed = not changed
            emit(ConfigFileSeen(changed))


def _digest(path: Path) -> bytes | None:
    try:
        # A FIFO never makes us wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return hashlib.sha256(file.read(_LARGEST_FILE)).digest()
    except OSError:
        return None
