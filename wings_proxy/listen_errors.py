"""Why an address cannot be listened on, and which setting changes that: pure text."""

from __future__ import annotations

import errno
import os
import socket

from wings_proxy.config.kinds import shown


def cannot_listen(variable: str, port: int, error: OSError, *, host: str = "") -> str:
    """Return one line for a person; `variable` is the setting of the port, `host` what WINGS_HOST says if it counts."""
    where = f"{variable}={port}" + (f" on WINGS_HOST={shown(host)}" if host else "")
    if isinstance(error, socket.gaierror):
        # A name that does not resolve has the resolver's words, and numbers of its own.
        return f"{where}: cannot listen: {error.strerror or error}; set WINGS_HOST to an address of this machine"
    # asyncio wraps the system's words into a sentence of its own.
    why = os.strerror(error.errno or 0)
    match error.errno:
        case errno.EADDRINUSE:
            advice = f"; end the process that has it, or set {variable} to another port"
        case errno.EACCES:
            advice = f" for uid {os.getuid()}: set {variable} to 1024 or more, ports below are the system's"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            advice = "; set WINGS_HOST to an address of this machine, or to none for all of them"
        case _:
            advice = ""
    return f"{where}: cannot listen: {why}{advice}"
