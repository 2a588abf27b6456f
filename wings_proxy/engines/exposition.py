"""What passes through of the engine's `/metrics` page: its own families, in the classic text format. Pure.

The page comes from a process that a client's prompt may have upset, and one bad line makes Prometheus throw away the
whole scrape, ours with it. So each line is let through only if the strictest of the known parsers takes it; a family
without the engine's prefix never is. A sample goes without its timestamp: what the engine says now is of now, and one
stamp in the future makes Prometheus refuse every later sample of the series. Reading is incremental and linear in the
page's length, and what is kept never is more than what was read.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

# vLLM's longest, `cache_config_info`, has about a thousand bytes.
_LONGEST_LINE: Final = 64 * 1024
# Of the families we read ourselves. An engine with 64 data-parallel ranks has a few hundred.
_MOST_SAMPLES: Final = 4096
# Of all families. The same engine has 40 000; Prometheus keeps each series in memory for hours.
_MOST_SERIES: Final = 65_536

# Repetitions are possessive: no input makes them try twice. Only the escapes that every parser knows.
_NAME: Final = rb"[A-Za-z_:][A-Za-z0-9_:]*+"
_VALUE: Final = rb"[+-]?(?:(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,4})?|Inf)|NaN"
_LABEL_NAME: Final = rb"[A-Za-z_][A-Za-z0-9_]*+"
_LABEL_VALUE: Final = rb'(?:[^"\\]|\\[\\n"])*+'
_LABEL: Final = re.compile(rb"(" + _LABEL_NAME + rb')="(' + _LABEL_VALUE + rb')"')
_LABELS: Final = rb"\{((?:" + _LABEL_NAME + rb'="' + _LABEL_VALUE + rb'"(?:,|(?=\})))*+)\}'
_SAMPLE: Final = re.compile(
    rb"(" + _NAME + rb")(?:" + _LABELS + rb")?[ \t]++(" + _VALUE + rb")(?:[ \t]++-?[0-9]{1,15})?+"
)
_TYPE: Final = re.compile(rb"# TYPE (" + _NAME + rb") (counter|gauge|histogram|summary|untyped)")
_HELP: Final = re.compile(rb"# HELP (" + _NAME + rb")(?: (?:[^\\]|\\[\\n])*+)?")
_NUMBER: Final = re.compile(_VALUE)
# Names a server gives to itself, the metric's own name among them: with it a sample could pose as one of ours.
_RESERVED: Final = b"__"
# What a histogram or a summary tells its parts apart by must be a number.
_NUMERIC: Final = frozenset({b"le", b"quantile"})
_SUFFIXES: Final = (b"_bucket", b"_count", b"_sum")
_COMPOSED: Final = frozenset({b"histogram", b"summary"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a family that was asked for; `labels` as they stood between the braces."""

    name: str
    labels: bytes
    value: float

    def label(self, name: str) -> str:
        """Return the value of a label, escapes left as they are; empty if it has none of that name."""
        for found, value in _LABEL.findall(self.labels):
            if found == name.encode():
                return str(value, "utf-8")
        return ""


class Exposition:
    """Reads one page piece by piece: `feed` each, then `end`."""

    def __init__(self, prefix: str, wanted: frozenset[str]) -> None:
        """Let families pass that begin with *prefix*; of those named in *wanted* give the samples too."""
        self._prefix = prefix.encode()
        self._comments = tuple(f"# {word} {prefix}".encode() for word in ("HELP", "TYPE"))
        self._wanted = {name.encode(): name for name in wanted}
        self._rest = b""
        self._skipping = False
        self._kept = bytearray()
        # What each family has had, since a second HELP or TYPE, or one after the samples, is an error.
        self._told: set[tuple[bytes, bytes]] = set()
        # Names of the parts of histograms and summaries: to some parsers they are no families of their own.
        self._parts: set[bytes] = set()
        self._sampled: set[bytes] = set()
        self._names: set[bytes] = set()
        # Hashes (of bytes: keyed, so nobody can aim at one); the series themselves would be the page once more.
        self._series: set[int] = set()
        self.samples: list[Sample] = []
        self.dropped = 0
        """Lines of the engine's families that could not be trusted to parse, or were too many, and lines too long to be
        looked at."""

    @property
    def text(self) -> bytes:
        """The lines that pass, in their order."""
        return bytes(self._kept)

    def feed(self, data: bytes) -> None:
        """Read the next piece of the page."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            else:
                self._line(self._rest + line)
            self._rest = b""
        if self._skipping:
            return
        self._rest += rest
        if len(self._rest) > _LONGEST_LINE:
            self.dropped += 1
            self._rest, self._skipping = b"", True

    def end(self) -> None:
        """Read what follows the last line's end: the format asks for one, not every engine gives it."""
        self.feed(b"\n")

    def _line(self, line: bytes) -> None:
        comment = line.startswith(self._comments)
        if not comment and not line.startswith(self._prefix):
            return
        kept = b""
        if len(line) <= _LONGEST_LINE and _is_text(line):
            kept = self._comment(line) if comment else self._sample(line)
        if kept:
            self._kept += kept + b"\n"
        else:
            self.dropped += 1

    def _comment(self, line: bytes) -> bytes:
        kind = line[2:6]
        found = (_TYPE if kind == b"TYPE" else _HELP).fullmatch(line)
        if found is None or (found[1], kind) in self._told or found[1] in self._parts:
            return b""
        if kind == b"TYPE":
            if found[1] in self._sampled:
                return b""
            if found[2] in _COMPOSED:
                self._parts.update(found[1] + suffix for suffix in _SUFFIXES)
        self._told.add((found[1], kind))
        return line

    def _sample(self, line: bytes) -> bytes:
        found = _SAMPLE.fullmatch(line)
        if found is None or len(self._series) >= _MOST_SERIES:
            return b""
        name, labels, value = found[1], found[2] or b"", found[3]
        pairs = _pairs(labels)
        if pairs is None or _overflows(value) or (series := hash((name, pairs))) in self._series:
            return b""
        self._series.add(series)
        if name not in self._names:
            self._names.add(name)
            self._sampled.update((name, *(name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix))))
        wanted = self._wanted.get(name)
        if wanted is not None and len(self.samples) < _MOST_SAMPLES:
            self.samples.append(Sample(wanted, labels, float(value)))
        return line[: found.end(3)]


def _is_text(line: bytes) -> bool:
    if line.isascii():
        return True
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _overflows(value: bytes) -> bool:
    # Prometheus takes `Inf`, and refuses the whole page for a number that a float64 cannot hold.
    return math.isinf(float(value)) and not value.endswith(b"Inf")


def _pairs(labels: bytes) -> frozenset[tuple[bytes, bytes]] | None:
    """Return well-formed labels as pairs; None if one name comes twice, or one is not theirs to give."""
    found: list[tuple[bytes, bytes]] = _LABEL.findall(labels)
    pairs = dict(found)
    if len(pairs) != len(found):
        return None
    for name in _NUMERIC & pairs.keys():
        if not _NUMBER.fullmatch(pairs[name]) or _overflows(pairs[name]):
            return None
    if _RESERVED in labels and any(name.startswith(_RESERVED) for name in pairs):
        return None
    return frozenset(found)
