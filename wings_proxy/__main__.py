"""Entry point of `wings-proxy` and `python -m wings_proxy`."""

from __future__ import annotations

import sys

from wings_proxy.cli import main


def run() -> None:
    """Run the command line and exit with its code."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
