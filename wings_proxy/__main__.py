"""Entry point of `wings-proxy` and `python -m wings_proxy`."""

from __future__ import annotations

import io
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # without importing typing: until the signals below are taken care of, a Ctrl-C ends in a traceback
    from typing import Never


def run() -> Never:
    """Run the command line and exit with its code."""
    # Process number 1 of a container loses a SIGTERM it has no handler for, and the imports take some tenths of a
    # second: a pod deleted in that time would stay until its grace period is over. Nothing has been begun yet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    _open_standard_streams()
    try:
        from wings_proxy.cli import main

        code = main(sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.exit(f"wings-proxy: {error}: install wings-infer with pip, which brings what it needs")
    except KeyboardInterrupt:
        # An event loop that has closed gives SIGINT back to Python, and everything is over but the exit.
        os._exit(128 + signal.SIGINT)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Give every standard stream a descriptor, so that no socket gets the number of one that was closed."""
    for descriptor, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # Standard input and output the wrong way round: whoever uses them is told that they are not there.
            os.open(os.devnull, flags)  # the kernel gives the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    # A name that the terminal's character set lacks is escaped; Python would end with a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _end(number: int, _: object) -> Never:
    # Not SystemExit: somebody's import could be caught in the middle, with a traceback.
    os._exit(128 + number)


if __name__ == "__main__":
    run()
