"""Which header fields cross the proxy, and the heads we write to either side, as bytes.

Fields keep their order, their spelling and their repetitions. Dropped are those that speak about one
connection (RFC 9110 §7.6.1), those named in `Connection`, and the few that this proxy sets itself.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from wings_proxy.proxy.api_errors import ApiError
from wings_proxy.proxy.http1 import MAX_LENGTH_DIGITS, ResponseHead, connection_options, parse_head

REQUEST_ID_HEADER = b"X-Request-Id"

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",  # trailers are read over when a body is framed anew
        b"transfer-encoding",
        b"upgrade",
    }
)
# Engines let every web page read their answers, with credentials; who may is for this proxy's configuration to say.
_CORS = frozenset(
    b"access-control-" + name
    for name in (
        b"allow-origin",
        b"allow-credentials",
        b"allow-methods",
        b"allow-headers",
        b"allow-private-network",
        b"expose-headers",
        b"max-age",
    )
)
_NOT_TO_CLIENT = HOP_BY_HOP | _CORS | {b"x-request-id", b"x-wings-origin"}
NOT_TO_ENGINE = HOP_BY_HOP | {b"host", b"expect", b"x-request-id"}
CREDENTIALS = frozenset({b"authorization", b"x-api-key"})

_READ = CREDENTIALS | {
    b"connection",
    b"content-length",
    b"expect",
    b"traceparent",
    b"transfer-encoding",
    b"upgrade",
    b"x-request-id",
}
SCHEME = b"bearer "
_USUAL_CONNECTIONS = frozenset({b"keep-alive", b"Keep-Alive", b"close"})

CLEAN_REQUEST_ID = re.compile(rb"[0-9A-Za-z._~+/=:@-]{1,128}")
# W3C Trace Context, version 00; `ff` is no version and an id of zeros is none.
TRACE_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PROCESS_ID = os.urandom(8).hex().encode()
_numbers = itertools.count(int.from_bytes(os.urandom(4)))

# A field named in `Connection` ends at this hop; but nobody may use that to strip what frames or names a
# message.
_NEVER_NAMED = frozenset({b"content-length", b"content-type", b"content-encoding", b"host"})


def request_id(given: bytes | None) -> bytes:
    """Return the client's request id if it is short and clean, else a fresh one of 32 hex digits."""
    if given is not None and CLEAN_REQUEST_ID.fullmatch(given):
        return given
    return b"%b%016x" % (_PROCESS_ID, next(_numbers))


@dataclass(slots=True)
class RequestFields:
    """A request's header fields, read in one pass."""

    lines: list[bytes]
    """The fields that go on to the engine, as written there."""
    read: dict[bytes, bytes]
    """The values we act on ourselves, by name in lower case; repeated ones joined by commas."""
    keys: list[bytes]
    """What the request offers as keys, in `Authorization: Bearer` and `x-api-key`."""

    @property
    def trace_id(self) -> str:
        """The trace the request belongs to; empty without a valid `traceparent`."""
        if (parent := self.read.get(b"traceparent")) is None:
            return ""
        found = TRACE_PARENT.fullmatch(parent)
        return found[1].decode() if found is not None else ""

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return b"transfer-encoding" in self.read


def read_fields(fields: Sequence[tuple[bytes, bytes]], *, dropped: frozenset[bytes]) -> RequestFields:
    """Sort a request's *fields*; the names in *dropped*, lower case, stay behind."""
    lines = []
    read: dict[bytes, bytes] = {}
    keys: list[bytes] = []
    for field in fields:
        key = field[0].lower()
        if key in _READ:
            value = field[1]
            if key not in CREDENTIALS:
                read[key] = b"%b,%b" % (read[key], value) if key in read else value
            elif key == b"x-api-key":
                keys.append(value)
            elif value[: len(SCHEME)].lower() == SCHEME:
                keys.append(value[len(SCHEME) :].strip(b" "))
        if key not in dropped:
            lines.append(b"%b: %b\r\n" % field)
    named = read.get(b"connection")
    if named is not None and named not in _USUAL_CONNECTIONS:
        dropped |= connection_options(named) - _NEVER_NAMED
        lines = [b"%b: %b\r\n" % field for field in fields if field[0].lower() not in dropped]
    return RequestFields(lines, read, keys)


def offered_keys(fields: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Return what a request with these *fields* offers as keys."""
    return read_fields(fields, dropped=frozenset()).keys


def request_head(
    method: str,
    target: str,
    fields: RequestFields,
    *,
    host: bytes,
    request_id: bytes,
    authorization: bytes | None = None,
) -> bytes:
    """Return the head sent to the engine.

    *target* is the request target exactly as received (aiohttp's surrogate escapes stand for bytes that are not UTF-8);
    *authorization* is our own credential for the engine.
    """
    added = b"Authorization: %b\r\n" % authorization if authorization is not None else b""
    if fields.chunked:
        added += b"Transfer-Encoding: chunked\r\n"
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%bX-Request-Id: %b\r\n\r\n" % (
        method.encode(),
        target.encode("utf-8", "surrogateescape"),
        host,
        b"".join(fields.lines),
        added,
        request_id,
    )


class AnswerHead(NamedTuple):
    """A head of the engine, and what of it goes on to the client, whatever length it announces."""

    head: ResponseHead
    """As if one byte was announced, where `after` is not empty."""
    before: bytes
    after: bytes
    """The length stands between the two; empty if there is none to put there."""


# As engines write it: uvicorn and cpp-httplib.
_LENGTH_FIELDS = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_REMEMBERED_BYTES = 1024


def answer_head(block: bytes, *, head_request: bool) -> tuple[AnswerHead, bytes]:
    """Read the engine's head in *block*; return it and the digits of its length, b"" if they need no second look.

    An engine writes the same head again and again but for the length: those with it taken out are remembered.
    *head_request*: as for `http1.parse_head`. Raises ProtocolError.
    """
    if len(block) > _REMEMBERED_BYTES:
        return _answer_head(block, head_request=head_request), b""
    start = block.find(_LENGTH_FIELDS[0])
    if start < 0 and (start := block.find(_LENGTH_FIELDS[1])) < 0:
        return _remembered(block, head_request=head_request, one=False), b""
    start += len(_LENGTH_FIELDS[0])
    end = block.index(b"\r\n", start)
    digits = block[start:end]
    if not digits.isdigit() or len(digits) > MAX_LENGTH_DIGITS:
        return _answer_head(block, head_request=head_request), b""
    return _remembered(b"%b1%b" % (block[:start], block[end:]), head_request=head_request, one=True), digits


def _answer_head(block: bytes, *, head_request: bool) -> AnswerHead:
    head = parse_head(block, head_request=head_request)
    dropped = _NOT_TO_CLIENT
    if head.connection:
        dropped |= head.connection - _NEVER_NAMED
    if head.status == 204:
        # RFC 9110 §8.6: no Content-Length there; some clients would wait for such a body.
        dropped |= {b"content-length"}
    parts = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    parts += [field.line for field in head.fields if field.key not in dropped]
    if head.content_type == b"text/event-stream":
        parts.append(_event_stream_fields(head))
    return AnswerHead(head, b"".join(parts), b"")


@lru_cache(maxsize=64)
def _remembered(template: bytes, *, head_request: bool, one: bool) -> AnswerHead:
    """Return what is known of a head; *one* says that 1 was put where its length stood."""
    answer = _answer_head(template, head_request=head_request)
    for field in _LENGTH_FIELDS if one else ():
        before, found, after = answer.before.partition(field + b"1\r\n")
        if found:
            return AnswerHead(answer.head, before + field, b"\r\n" + after)
    return answer


def response_head(
    answer: AnswerHead,
    digits: bytes,
    *,
    request_id: bytes,
    chunked: bool,
    connection: bytes | None,
    extra: bytes = b"",
) -> bytes:
    """Return the engine's head as the client gets it, with *extra* lines of ours.

    *digits* are those of the length; *chunked* says that we frame the body in chunks; *connection* is the value of our
    own `Connection` field.
    """
    return b"%b%b%b%b%b%bX-Request-Id: %b\r\n\r\n" % (
        answer.before,
        digits if answer.after else b"",
        answer.after,
        b"Transfer-Encoding: chunked\r\n" if chunked else b"",
        b"" if connection is None else b"Connection: %b\r\n" % connection,
        extra,
        request_id,
    )


def _event_stream_fields(head: ResponseHead) -> bytes:
    """Keep caches and buffering proxies off an event stream, unless the engine spoke about them."""
    names = {field.key for field in head.fields}
    added = b""
    if b"cache-control" not in names:
        added += b"Cache-Control: no-cache\r\n"
    if b"x-accel-buffering" not in names:
        added += b"X-Accel-Buffering: no\r\n"
    return added


def error_response(
    error: ApiError, *, request_id: bytes, head_request: bool, connection: bytes | None, extra: bytes = b""
) -> bytes:
    """Return an answer of our own, head with *extra* lines and body; a HEAD request gets no body."""
    body = error.body
    parts = [b"HTTP/1.1 %d %b\r\n" % (error.status, error.reason)]
    parts += [b"%b: %b\r\n" % field for field in error.headers]
    if connection is not None:
        parts.append(b"Connection: %b\r\n" % connection)
    parts.append(b"%bContent-Length: %d\r\nX-Request-Id: %b\r\n\r\n" % (extra, len(body), request_id))
    if not head_request:
        parts.append(body)
    return b"".join(parts)
