"""Entry point of `wings-proxy` and `python -m wings_proxy`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Never


def run() -> None:
    """Run the command line and exit with its code."""
    # Process number 1 of a container loses a SIGTERM it has no handler for, and the imports take some tenths of a
    # second: a pod deleted in that time would stay until its grace period is over. Nothing has been begun yet.
    signal.signal(signal.SIGTERM, _end)
    try:
        from wings_proxy.cli import main

        code = main(sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.exit(f"wings-proxy: {error}: install wings-infer with pip, which brings what it needs")
    sys.exit(code)


def _end(number: int, _: object) -> Never:
    # Not SystemExit: somebody's import could be caught in the middle, with a traceback.
    os._exit(128 + number)


if __name__ == "__main__":
    run()
