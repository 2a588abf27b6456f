"""Just enough of PromQL to say which metrics an expression reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parent.parent.parent / "wings_proxy"

_NAME: Final = re.compile(r"(?<![\w:])wings_[a-z0-9_]+(?!\w)")
_STRING: Final = re.compile(r'"wings_[a-z0-9_]+"')
_ENDINGS: Final = ("", "_total", "_bucket", "_sum", "_count")

AWAITED: Final[frozenset[str]] = frozenset()
"""Agreed on and asked for, but not yet served. Take a name out with the change that serves it: a test says so."""


def names_in(text: str) -> set[str]:
    """Return our metrics that *text* names: an expression, or prose. A recorded series is none (`level:metric:…`)."""
    recorded = re.compile(r"\w+:wings_\w+(:\w+)+")
    return set(_NAME.findall(recorded.sub("", text)))


def served_names() -> set[str]:
    """Return every name the code can serve a sample under: the families' names in the package, with all endings."""
    families: set[str] = set()
    for module in PACKAGE.rglob("*.py"):
        families |= {literal.strip('"') for literal in _STRING.findall(module.read_text("utf-8"))}
    return {family.removesuffix("_total") + ending for family in families for ending in _ENDINGS}
