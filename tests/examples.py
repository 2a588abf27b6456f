"""How many examples of whatever is generated; `WINGS_EXAMPLES=1000`, as in `make soak`, asks for ten times as many."""

from __future__ import annotations

import os
from typing import Final

_ASKED_FOR: Final = os.environ.get("WINGS_EXAMPLES", "")
USUAL: Final = 100

BY_CHANCE: Final = "CI" not in os.environ or bool(_ASKED_FOR)
"""In CI a change is judged by the same examples each time; whoever asks for more gets new ones."""


def examples(usual: int = USUAL) -> int:
    """Return how many, for a test that takes so many usually."""
    return max(1, usual * int(_ASKED_FOR or USUAL) // USUAL)
