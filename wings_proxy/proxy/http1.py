"""HTTP/1.1 as the engine speaks it to us: response heads and chunked bodies (RFC 9112).

Pure code on bytes, no I/O. It is strict: what two readers could understand differently (bare line feeds,
folded lines, two lengths, a length next to a transfer coding) is refused, never repaired.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256
MAX_CHUNK_LINE_BYTES = 4 * 1024
MAX_TRAILER_BYTES = 16 * 1024
MAX_LENGTH_DIGITS = 18

LAST_CHUNK = b"0\r\n\r\n"


class ProtocolError(Exception):
    """The peer's bytes are not HTTP/1.1 as we are willing to read it."""


class BodyError(ProtocolError):
    """A chunked body broke; `pieces` are those that stood whole before, in the bytes that were fed last."""

    def __init__(self, detail: str, pieces: list[bytes]) -> None:
        super().__init__(detail)
        self.pieces = pieces


class Field(NamedTuple):
    """One header field."""

    key: bytes
    """The name in lower case."""
    name: bytes
    """The name as the sender wrote it."""
    value: bytes
    """The value without the white space around it."""
    line: bytes
    """The field as we write it, with CR LF."""


class Framing(Enum):
    """Where a response body ends (RFC 9112 §6.3)."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()


class ResponseHead(NamedTuple):
    """A response's status line and header fields, with what follows from them."""

    status: int
    reason: bytes
    fields: list[Field]
    framing: Framing
    length: int
    """Bytes of the body; 0 unless `framing` is LENGTH."""
    keep_alive: bool
    """Whether the sender keeps the connection open after the body."""
    connection: frozenset[bytes]
    """The options named in `Connection`, lower case: these fields end at the next hop (RFC 9110 §7.6.1)."""
    content_type: bytes
    """Lower case, without parameters; empty if there is none."""
    encoded: bool
    """Whether there is a `Content-Encoding`."""

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is a server-sent event stream in plain text."""
        return self.content_type == b"text/event-stream" and not self.encoded


_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_DIGITS = re.compile(rb"[0-9]{1,%d}" % MAX_LENGTH_DIGITS)


def find_head(data: bytes) -> int:
    """Return where the head at the start of *data* ends (behind its blank line), or 0 if it is not complete.

    Raises ProtocolError as soon as *data* cannot become a head any more, so that a peer speaking something
    else (TLS, SSH, bare line feeds) is found out at once and not by a time-out.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end >= 0:
        return end + 4
    if not data.startswith(b"HTTP/1."[: len(data)]):
        raise ProtocolError("the answer does not start with HTTP/1.")
    if len(data) >= MAX_HEAD_BYTES:
        raise ProtocolError(f"the head of the answer is longer than {MAX_HEAD_BYTES} bytes")
    if _BARE_LINE_FEED.search(data):
        raise ProtocolError("a line of the head does not end with CR LF")
    return 0


def parse_head(block: bytes, *, head_request: bool) -> ResponseHead:
    r"""Parse a response head, *block* including its final blank line.

    *head_request* says that the request's method was HEAD: the answer then has no body, whatever it
    announces.
    """
    start, *lines = block[:-4].split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise ProtocolError(f"the head has more than {MAX_FIELDS} fields")
    status, reason, minor = _status_line(start)
    # The cache holds short lines only: its size in bytes is bounded whatever an engine sends.
    fields = [_cached_field(line) if len(line) <= _CACHED_LINE_BYTES else _field(line) for line in lines]
    coding = content_type = b""
    lengths: list[bytes] = []
    connection: frozenset[bytes] = frozenset()
    encoded = False
    for key, _, value, _ in fields:
        if key not in _INTERPRETED:
            continue
        if key == b"content-length":
            lengths.append(value)
        elif key == b"content-type":
            content_type = value.split(b";", 1)[0].rstrip().lower()
        elif key == b"transfer-encoding":
            coding = coding + b"," + value if coding else value or b"?"
        elif key == b"connection":
            connection |= connection_options(value)
        else:
            encoded = True
    framing, length = _framing(status, coding, lengths, head_request=head_request, minor=minor)
    return ResponseHead(
        status=status,
        reason=reason,
        fields=fields,
        framing=framing,
        length=length,
        keep_alive=minor == 1 and framing is not Framing.CLOSE and b"close" not in connection,
        connection=connection,
        content_type=content_type,
        encoded=encoded,
    )


# An engine writes the same lines again and again; only the date and the length change.
_CACHED_LINE_BYTES = 256


def _field(line: bytes) -> Field:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise ProtocolError("bad header field")
    name, value = match.groups()
    value = value.rstrip(b" \t")
    return Field(name.lower(), name, value, b"%b: %b\r\n" % (name, value))


_cached_field = lru_cache(maxsize=512)(_field)


@lru_cache(maxsize=64)
def _status_line(line: bytes) -> tuple[int, bytes, int]:
    """Return status, reason phrase and minor version."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("bad status line")
    return int(match[2]), match[3] or b"", int(match[1])


_INTERPRETED = frozenset({b"content-length", b"transfer-encoding", b"connection", b"content-type", b"content-encoding"})


def connection_options(value: bytes) -> frozenset[bytes]:
    """Return the options of a `Connection` field's value, lower case."""
    return frozenset(option for part in value.lower().split(b",") if (option := part.strip(b" \t")))


def _framing(
    status: int, coding: bytes, lengths: list[bytes], *, head_request: bool, minor: int
) -> tuple[Framing, int]:
    """Decide where the body ends: RFC 9112 §6.3, but refusing what it lets a recipient repair."""
    if status == 101:
        raise ProtocolError("101 for a request that asked for no upgrade")
    length = 0
    if lengths:
        if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
            raise ProtocolError("bad Content-Length")
        length = int(lengths[0])
    if coding and (lengths or minor == 0 or coding.lower() != b"chunked"):
        raise ProtocolError("bad Transfer-Encoding")
    if head_request or status < 200 or status in {204, 304}:
        return Framing.NONE, 0
    if coding:
        return Framing.CHUNKED, 0
    if lengths:
        return (Framing.LENGTH, length) if length else (Framing.NONE, 0)
    return Framing.CLOSE, 0


def encode_chunk(data: bytes) -> bytes:
    """Return *data*, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# Not with a line end at its beginning: that would look like more of the one before.
_CHUNK = re.compile(rb"([1-9a-fA-F][0-9a-fA-F]{0,14})\r\n(?![\r\n])")
_LINE_FEED = 0x0A
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")


class _Part(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    DONE = auto()


class ChunkedDecoder:
    """Takes a chunked body apart, however the network cut it (RFC 9112 §7.1).

    Extensions and trailers are read over, within bounds. `done` says that the end was seen, `surplus` that
    bytes followed it.
    """

    __slots__ = ("_held", "_part", "_remaining", "_trailer_bytes", "done", "surplus")

    def __init__(self) -> None:
        self._part = _Part.SIZE
        self._held = b""
        self._remaining = 0
        self._trailer_bytes = 0
        self.done = False
        self.surplus = False

    @property
    def between_chunks(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._part is _Part.SIZE and not self._held

    @property
    def left(self) -> int:
        """How many bytes the present chunk still has on the wire; 0 where no chunk's data are expected next."""
        return self._remaining + 2 if self._part is _Part.DATA else 0

    def whole_chunks(self, data: bytes, ending: bytes = b"\r\n") -> int:
        """Return how many bytes of body *data* carries if it is made of whole, plain chunks; else 0.

        Then *data* is itself the clean framing and may be passed on as it is; the decoder has nothing to
        learn from it. Each chunk must end with *ending*, of which CR LF are the last two bytes; if it is longer, no
        line feed may stand before it.
        """
        if not self.between_chunks:
            return 0
        least = len(ending) - 2
        body = position = 0
        end = len(data)
        while position < end:
            match = _CHUNK.match(data, position)
            if match is None:
                return 0
            size = int(match[1], 16)
            position = match.end() + size + 2
            if position > end or size < least or not data.startswith(ending, position - least - 2):
                return 0
            if least and data[position - least - 3] == _LINE_FEED:
                return 0
            body += size
        return body

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the wire and return the pieces of body in them, none of them empty.

        Raises BodyError.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        try:
            self._take(data, pieces)
        except ProtocolError as error:
            raise BodyError(str(error), pieces) from error
        return pieces

    def _take(self, data: bytes, pieces: list[bytes]) -> None:
        position = 0
        end = len(data)
        while position < end:
            if self._part is _Part.DATA:
                piece = data[position : position + self._remaining]
                pieces.append(piece)
                position += len(piece)
                self._remaining -= len(piece)
                if not self._remaining:
                    self._part = _Part.DATA_END
            elif self._part is _Part.DONE:
                self.surplus = True
                break
            elif (line_end := self._line_end(data, position)) < 0:
                self._held = data[position:]
                break
            else:
                self._line(data[position:line_end])
                position = line_end + 2

    def _line_end(self, data: bytes, start: int) -> int:
        """Return where the line at *start* ends, -1 if its end has not come; refuse what cannot be a line."""
        limit = 0 if self._part is _Part.DATA_END else MAX_CHUNK_LINE_BYTES
        line_feed = data.find(b"\n", start, start + limit + 2)
        if line_feed < 0:
            if len(data) - start > limit + 1 or (not limit and data[start] != 0x0D):
                raise ProtocolError("a line of the chunked body is longer than it can be")
            if self._part is _Part.SIZE and not _CHUNK_SIZE.fullmatch(data[start:].removesuffix(b"\r")):
                raise ProtocolError("bad chunk size")  # at once: a peer that stops here must not hold us up
            return -1
        if line_feed == start or data[line_feed - 1] != 0x0D:
            raise ProtocolError("a line of the chunked body does not end with CR LF")
        return line_feed - 1

    def _line(self, line: bytes) -> None:
        if self._part is _Part.SIZE:
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise ProtocolError("bad chunk size")
            self._remaining = int(match[1], 16)
            self._part = _Part.DATA if self._remaining else _Part.TRAILER
        elif self._part is _Part.DATA_END:
            self._part = _Part.SIZE
        elif line:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES or not _FIELD.fullmatch(line):
                raise ProtocolError("bad trailer")
        else:
            self._part = _Part.DONE
            self.done = True
