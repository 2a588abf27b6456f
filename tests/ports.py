"""Ports nobody listens on, and nobody will be given."""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_WIDTH = 12_000


def _below_the_kernels() -> Iterator[int]:
    """Yield ports for ever, from somewhere on: another run of the tests is elsewhere, and no port comes twice soon."""
    lowest = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
    ports = range(max(1024, lowest - _WIDTH), lowest)
    return itertools.islice(itertools.cycle(ports), secrets.randbelow(len(ports)), None)


_PORTS = _below_the_kernels()


def free_port() -> int:
    """Return a port of this machine that is free, from below those the kernel gives away by itself.

    One of the kernel's own would be given, a moment later, to the next client or to a server that asks for any port;
    and a client that dials it while nobody listens may be given it itself, and be connected to itself.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
