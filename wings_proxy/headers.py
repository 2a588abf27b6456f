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

from wings_proxy.api_errors import ApiError
from wings_proxy.http1 import ResponseHead, connection_options

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
_NOT_TO_CLIENT = HOP_BY_HOP | {b"x-request-id", b"x-wings-origin"}
NOT_TO_ENGINE = HOP_BY_HOP | {b"host", b"expect", b"x-request-id"}
CREDENTIALS = frozenset({b"authorization", b"x-api-key"})

_READ = frozenset({b"connection", b"content-length", b"expect", b"transfer-encoding", b"upgrade", b"x-request-id"})
_USUAL_CONNECTIONS = frozenset({b"keep-alive", b"Keep-Alive", b"close"})

_CLEAN_REQUEST_ID = re.compile(rb"[0-9A-Za-z._~+/=:@-]{1,128}")
_PROCESS_ID = os.urandom(8).hex().encode()
_numbers = itertools.count(int.from_bytes(os.urandom(4)))

# A field named in `Connection` ends at this hop; but nobody may use that to strip what frames or names a
# message.
_NEVER_NAMED = frozenset({b"content-length", b"content-type", b"content-encoding", b"host"})


def request_id(given: bytes | None) -> bytes:
    """Return the client's request id if it is short and clean, else a fresh one of 32 hex digits."""
    if given is not None and _CLEAN_REQUEST_ID.fullmatch(given):
        return given
    return b"%b%016x" % (_PROCESS_ID, next(_numbers))


@dataclass(slots=True)
class RequestFields:
    """A request's header fields, read in one pass."""

    lines: list[bytes]
    """The fields that go on to the engine, as written there."""
    read: dict[bytes, bytes]
    """The values we act on ourselves, by name in lower case; repeated ones joined by commas."""

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return b"transfer-encoding" in self.read


def read_fields(fields: Sequence[tuple[bytes, bytes]], *, dropped: frozenset[bytes]) -> RequestFields:
    """Sort a request's *fields*; the names in *dropped*, lower case, stay behind."""
    lines = []
    read: dict[bytes, bytes] = {}
    for name, value in fields:
        key = name.lower()
        if key in _READ:
            read[key] = b"%b,%b" % (read[key], value) if key in read else value
        if key not in dropped:
            lines.append(b"%b: %b\r\n" % (name, value))
    named = read.get(b"connection")
    if named is not None and named not in _USUAL_CONNECTIONS:
        dropped |= connection_options(named) - _NEVER_NAMED
        lines = [b"%b: %b\r\n" % field for field in fields if field[0].lower() not in dropped]
    return RequestFields(lines, read)


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


def response_head(head: ResponseHead, *, request_id: bytes, chunked: bool, connection: bytes | None) -> bytes:
    """Return the engine's head as the client gets it.

    *chunked* says that we frame the body in chunks; *connection* is the value of our own `Connection` field.
    """
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
    if chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if connection is not None:
        parts.append(b"Connection: %b\r\n" % connection)
    parts.append(b"X-Request-Id: %b\r\n\r\n" % request_id)
    return b"".join(parts)


def _event_stream_fields(head: ResponseHead) -> bytes:
    """Keep caches and buffering proxies off an event stream, unless the engine spoke about them."""
    names = {field.key for field in head.fields}
    added = b""
    if b"cache-control" not in names:
        added += b"Cache-Control: no-cache\r\n"
    if b"x-accel-buffering" not in names:
        added += b"X-Accel-Buffering: no\r\n"
    return added


def error_response(error: ApiError, *, request_id: bytes, head_request: bool, connection: bytes | None) -> bytes:
    """Return an answer of our own, head and body; a HEAD request gets no body."""
    body = error.body
    parts = [b"HTTP/1.1 %d %b\r\n" % (error.status, error.reason)]
    parts += [b"%b: %b\r\n" % field for field in error.headers]
    if connection is not None:
        parts.append(b"Connection: %b\r\n" % connection)
    parts.append(b"Content-Length: %d\r\nX-Request-Id: %b\r\n\r\n" % (len(body), request_id))
    if not head_request:
        parts.append(body)
    return b"".join(parts)
