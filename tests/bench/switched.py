"""`wings-proxy` with a switch: SIGUSR2 takes instruments out of its running code, SIGUSR1 puts them back.

`python -m tests.bench.switched INSTRUMENTS serve`; INSTRUMENTS are names of `Instrument`, separated by commas.
"""

from __future__ import annotations

import signal
import sys

from tests.bench.instruments import Instrument, Switch
from wings_proxy.__main__ import run


def main() -> None:
    """Set the switch up, then be `wings-proxy`."""
    switch = Switch([Instrument(name) for name in sys.argv.pop(1).split(",")])
    signal.signal(signal.SIGUSR1, lambda *_: switch.on())
    signal.signal(signal.SIGUSR2, lambda *_: switch.off())
    run()


if __name__ == "__main__":
    main()
