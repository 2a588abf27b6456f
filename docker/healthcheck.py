"""The container's own health check: ask /livez, where the configuration says that the sidecar listens.

Standard library and our configuration only: it runs every half minute, and `wings-proxy` itself takes twice the time.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Final

from wings_proxy.config.load import ConfigError, resolve

_TIMEOUT_SECONDS: Final = 2.0
# What stands for every address cannot be dialled everywhere.
_LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_STATUS_BYTES: Final = len(b"HTTP/1.1 200")


def main(environ: Mapping[str, str]) -> int:
    """Return 0 if the sidecar answers 200; else say what was seen and return 1."""
    try:
        config = resolve(environ).config
        where = (_LOOPBACK.get(config.host, config.host), config.port)
        with socket.create_connection(where, _TIMEOUT_SECONDS) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status = b""
            while len(status) < _STATUS_BYTES and (piece := connection.recv(_STATUS_BYTES - len(status))):
                status += piece
    except (ConfigError, OSError) as error:
        print(f"/livez: {error}")
        return 1
    print(f"/livez: {status.decode('latin-1')}")
    return 0 if status == b"HTTP/1.1 200" else 1


if __name__ == "__main__":
    sys.exit(main(os.environ))
