"""Request heads seen before: a client sends the same one with every request, but for the values of a few fields.

aiohttp's parser says what a request is. When it took a head, between two requests, for a plain one, the head is kept
with those values left open. Later heads that are the same byte for byte, and whose open values have a strict form (a
length of digits, a request id of clean characters), would be parsed alike: what came of the first one is used again.
Nothing is guessed: another byte anywhere, or a value of another form, is for the parser.

Open values are in no head that is kept, so no key and no cookie is.

A head that comes again and again gets a pattern of its own: one match then takes a head apart and looks at its values,
and says no to the same heads. A client's connection tries the one that it met last.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

from wings_proxy.proxy.headers import CLEAN_REQUEST_ID, SCHEME, TRACE_PARENT, RequestFields
from wings_proxy.proxy.whole_body import WholeBody

MOST_HEADS: Final = 256
MOST_HEAD_BYTES: Final = 2048
"""Of a head that is kept; with what is made of it, all of them take less than 2 MiB."""
HOT_USES: Final = 100
"""A head met so often gets its pattern: making that costs as much as reading about a hundred heads without it."""

_VALUE: Final = rb"[!-~](?:[ -~]*[!-~])?"


class Slot(NamedTuple):
    """A field whose value differs from one request to the next."""

    name: bytes
    """Lower case."""
    form: re.Pattern[bytes]
    """Which every value must have, from its beginning to its end; none of them holds a CR."""
    acted_on: bool = True
    """Whether `RequestFields` has it; else it only goes on."""


_CONTENT_LENGTH: Final = Slot(b"content-length", re.compile(rb"0|[1-9][0-9]{0,6}"))
"""Without zeros before it, and short: no two readers take it for two numbers."""
_AUTHORIZATION: Final = Slot(b"authorization", re.compile(rb"(?i:bearer) [!-~]+"))
_API_KEY: Final = Slot(b"x-api-key", re.compile(rb"[!-~]+"))
_OPEN: Final = {
    slot.name: slot
    for slot in (
        _CONTENT_LENGTH,
        _AUTHORIZATION,
        _API_KEY,
        Slot(b"x-request-id", CLEAN_REQUEST_ID),
        Slot(b"traceparent", TRACE_PARENT),
        # A cookie, like a key, must not be kept.
        *(
            Slot(name, re.compile(_VALUE), acted_on=False)
            for name in (
                b"tracestate",
                b"baggage",
                b"cookie",
                b"idempotency-key",
                b"x-forwarded-for",
                b"x-client-request-id",
                b"x-correlation-id",
            )
        ),
    )
}
_OPEN_LINES: Final = re.compile(rb"(\r\n(?i:%b): )([^\r]*)" % b"|".join(_OPEN))
_PLAIN: Final = re.compile(
    rb"([A-Z]+) (/[!->@-~]*) HTTP/1\.1((?:\r\n[!#$%%&'*+.^_`|~0-9A-Za-z-]+: %b)*)\r\n\r\n" % _VALUE
)
"""A head that nobody could read in two ways; without a query, which may hold what must not be kept."""
_NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"proxy-authorization"})
_KEEPS_ALIVE: Final = frozenset({b"keep-alive", b"Keep-Alive"})


class Split(NamedTuple):
    """A request head with the values of the open fields taken out."""

    template: bytes
    """The rest; wherever an open field stood its name still does, so that two heads never make the same one."""
    values: list[bytes]
    end: int
    """Where the head ends in the bytes it was found in."""


def split_head(data: bytes) -> Split | None:
    """Take the head at the start of *data* apart; None if it does not end within `MOST_HEAD_BYTES`."""
    end = data.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES) + 4
    if end < 4:
        return None
    parts = _OPEN_LINES.split(data[:end])
    values = parts[2::3]
    del parts[2::3]
    return Split(b"".join(parts), values, end)


@dataclass(slots=True)
class KnownHead:
    """What a head came to, whatever the values of its open fields."""

    message: RawRequestMessage
    """As parsed, without fields."""
    route: str
    origin: str | None
    """The `Origin` it names."""
    slots: tuple[Slot, ...]
    """Of its open values, in their order."""
    lines: bytes
    """What goes on to the engine, as a format of the open values."""
    literals: tuple[bytes, ...]
    """The head as it is, cut where the open values stand."""
    _uses: int = 0
    _pattern: re.Pattern[bytes] | None = None
    _groups: tuple[int, ...] = ()
    """Of the pattern: the whole, twice, as of one group alone `Match.group` makes no tuple, then each open value."""

    def fields(self, values: Sequence[bytes]) -> RequestFields | None:
        """Return the fields of a head with these *values*, as `read_fields` does; None if one has not its form."""
        for slot, value in zip(self.slots, values, strict=True):
            if not slot.form.fullmatch(value):
                return None
        self._uses += 1
        if self._uses == HOT_USES:
            self._make_pattern()
        return self._fields(values)

    def read(self, data: bytes) -> tuple[bytes, RequestFields] | None:
        """Return the head at the start of *data* and its fields if it is this one, by the pattern alone.

        None as well while there is no pattern: `split_head` and `fields` then say the same.
        """
        if self._pattern is None or (match := self._pattern.match(data, 0, MOST_HEAD_BYTES)) is None:
            return None
        _, head, *values = match.group(*self._groups)
        return head, self._fields(values)

    def _make_pattern(self) -> None:
        source = re.escape(self.literals[0])
        groups, at = [0, 0], 1
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            groups.append(at)
            at += 1 + slot.form.groups
            source += b"(%b)%b" % (slot.form.pattern, re.escape(literal))
        self._groups = tuple(groups)
        self._pattern = re.compile(source)

    def _fields(self, values: Sequence[bytes]) -> RequestFields:
        read: dict[bytes, bytes] = {}
        keys: list[bytes] = []
        for slot, value in zip(self.slots, values, strict=True):
            if slot is _AUTHORIZATION:
                keys.append(value[len(SCHEME) :])
            elif slot is _API_KEY:
                keys.append(value)
            elif slot.acted_on:
                read[slot.name] = value
        return RequestFields([self.lines % (*values,)], read, keys)


class HeldRequest:
    """A request with a known head, and what has come of its body."""

    __slots__ = ("_head", "_pieces", "began", "fields", "known", "length", "missing")

    def __init__(self, head: bytes, known: KnownHead, fields: RequestFields, began: float) -> None:
        """Take the *head* as it came, and the monotonic time at which it was here."""
        self._head = head
        self._pieces: list[bytes] = []
        self.known = known
        self.fields = fields
        self.began = began
        self.length = int(fields.read.get(_CONTENT_LENGTH.name, b"0"))
        self.missing = self.length
        """Bytes of the body that have not come."""

    def add(self, data: bytes) -> bool:
        """Take bytes of the body; False if they are more than it."""
        self._pieces.append(data)
        self.missing -= len(data)
        return self.missing >= 0

    @property
    def body(self) -> WholeBody:
        """The body, once nothing is missing."""
        pieces = self._pieces
        return WholeBody(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    @property
    def data(self) -> bytes:
        """All that has come."""
        return b"".join((self._head, *self._pieces))


class _Standing(Enum):
    SEEN = auto()
    """Once: what is never seen again is not worth more."""
    NOT_PLAIN = auto()


class KnownHeads:
    """The heads that are kept; when there are too many, the one that was not met for longest goes."""

    def __init__(self, dropped: frozenset[bytes]) -> None:
        """Take the fields that do not go on to the engine, as `headers.read_fields` does."""
        self._dropped = dropped
        self._heads: OrderedDict[bytes, KnownHead | _Standing] = OrderedDict()

    def __len__(self) -> int:
        """Return how many there are, those included that were only seen."""
        return len(self._heads)

    def get(self, template: bytes) -> KnownHead | None:
        """Return what is known of a template, or None."""
        known = self._heads.get(template)
        if known is None or isinstance(known, _Standing):
            return None
        self._heads.move_to_end(template)
        return known

    def note(self, split: Split, head: bytes, message: RawRequestMessage, route: str) -> None:
        """Learn of a *head* that the parser made *message* of; the second time it is kept, if it is plain."""
        standing = self._heads.get(split.template)
        if standing is None:
            self._heads[split.template] = _Standing.SEEN
            if len(self._heads) > MOST_HEADS:
                self._heads.popitem(last=False)
        elif standing is _Standing.SEEN:
            self._heads[split.template] = self._known(split, head, message, route) or _Standing.NOT_PLAIN

    def _known(self, split: Split, head: bytes, message: RawRequestMessage, route: str) -> KnownHead | None:
        plain = _PLAIN.fullmatch(head)
        if plain is None or message.should_close or message.chunked or message.upgrade:
            return None
        lines = [line.split(b": ", 1) for line in plain[3].split(b"\r\n")[1:]]
        fields = [(name, value) for name, value in lines]
        names = [name.lower() for name, _ in fields]
        slots = tuple(_OPEN[name] for name in names if name in _OPEN)
        if (
            # What we read must be what the parser read.
            (plain[1].decode(), plain[2].decode()) != (message.method, message.path)
            or tuple(fields) != message.raw_headers
            or message.version != HttpVersion11
            or not _NOT_PLAIN.isdisjoint(names)
            or any(
                name == b"connection" and value not in _KEEPS_ALIVE
                for name, (_, value) in zip(names, fields, strict=True)
            )
            or len(slots) != len({slot.name for slot in slots})
            or not all(slot.form.fullmatch(value) for slot, value in zip(slots, split.values, strict=True))
        ):
            return None
        bare = message._replace(headers=CIMultiDictProxy(CIMultiDict()), raw_headers=())
        form = b"".join(self._line(name, value) for name, value in fields)
        literals = self._literals(head)
        return KnownHead(bare, route, message.headers.get("Origin"), slots, form, literals)

    def _literals(self, head: bytes) -> tuple[bytes, ...]:
        parts = _OPEN_LINES.split(head)  # literal, name, value, literal, name, value, ... literal
        return (*map(b"".join, zip(parts[:-1:3], parts[1::3], strict=True)), parts[-1])

    def _line(self, name: bytes, value: bytes) -> bytes:
        key = name.lower()
        if key in self._dropped:
            # "%.0b" takes its value and writes nothing of it.
            return b"%.0b" if key in _OPEN else b""
        name = name.replace(b"%", b"%%")
        return name + (b": %b\r\n" if key in _OPEN else b": %b\r\n" % value.replace(b"%", b"%%"))
