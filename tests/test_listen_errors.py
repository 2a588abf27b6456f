"""What is said of an address that cannot be listened on."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from wings_proxy.listen_errors import cannot_listen


@pytest.mark.parametrize(
    ("number", "host", "line"),
    [
        (
            errno.EADDRINUSE,
            "",
            (
                "WINGS_PORT=90: cannot listen: Address already in use; end the process that has it, or "
                "set WINGS_PORT to another port"
            ),
        ),
        (
            errno.EACCES,
            "::1",
            (
                f"WINGS_PORT=90 on WINGS_HOST=::1: cannot listen: Permission denied for uid {os.getuid()}: "
                "set WINGS_PORT to 1024 or more, ports below are the system's"
            ),
        ),
        (
            errno.EADDRNOTAVAIL,
            "192.0.2.1",
            (
                "WINGS_PORT=90 on WINGS_HOST=192.0.2.1: cannot listen: Cannot assign requested address; "
                "set WINGS_HOST to an address of this machine, or to none for all of them"
            ),
        ),
        (errno.EMFILE, "", "WINGS_PORT=90: cannot listen: Too many open files"),
    ],
)
def test_the_line_names_the_setting_to_change(number: int, host: str, line: str) -> None:
    # As asyncio has it: the system's words within a sentence of its own.
    assert cannot_listen("WINGS_PORT", 90, OSError(number, "error while attempting to bind"), host=host) == line


def test_a_name_that_does_not_resolve() -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert cannot_listen("WINGS_PORT", 90, error, host="a\nb") == (
        "WINGS_PORT=90 on WINGS_HOST=a\\nb: cannot listen: Name or service not known; "
        "set WINGS_HOST to an address of this machine"
    )
