"""Which requests never reach the engine, whatever its state: decided from their head alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.http1 import connection_options

_TARGET = re.compile(r"/[^\x00-\x20\x7f]*")
# TRACE would show the client what we added for the engine, its key above all (RFC 9110 §9.3.8); CONNECT asks for a
# tunnel, and what follows its head is not HTTP.
_METHODS_REFUSED = frozenset({"TRACE", "CONNECT"})
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_UPGRADES_REFUSED = frozenset({b"websocket", b"tcp"})


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """Limits of the byte path; seconds and bytes. None turns a limit off."""

    engine_port: int
    connect_timeout_seconds: float = 2.0
    first_byte_timeout_seconds: float | None = None
    """From the request's last byte to the response head; a long prefill is silent."""
    idle_timeout_seconds: float | None = None
    """Between two bytes of the answer's body."""
    write_stall_seconds: float = 60.0
    """How long a client may leave its buffer full."""
    body_patience_seconds: float = 60.0
    """How long a client may keep us waiting for its body, and a second more for each 500 bytes of it."""
    max_body_bytes: int = 64 * 1024 * 1024
    max_inflight: int | None = None
    engine_authorization: bytes | None = None
    """Value of `Authorization` sent to the engine, for example `Bearer …`."""


def too_large(limit: int) -> ApiError:
    """Return the refusal of a body longer than *limit* bytes."""
    return ApiError(413, ErrorCode.REQUEST_TOO_LARGE, f"the request's body is longer than {limit} bytes", close=True)


def check(
    method: str,
    target: str,
    fields: Mapping[bytes, bytes],
    settings: ForwardSettings,
    *,
    http10: bool,
    in_flight: int,
) -> ApiError | None:
    """Return the refusal of a request that must not be forwarded, or None.

    *fields* are the values read from its head, by name in lower case (`headers.RequestFields.read`); *http10* says
    that the client speaks HTTP/1.0; *in_flight* counts the requests admitted before it.
    """
    if method in _METHODS_REFUSED:
        return ApiError(405, ErrorCode.METHOD_NOT_ALLOWED, "this method is not forwarded", close=True, allow=_METHODS)
    if not _TARGET.fullmatch(target):
        return ApiError(400, ErrorCode.INVALID_REQUEST, "the request target is not a plain path")
    if (upgrade := fields.get(b"upgrade")) is not None and connection_options(upgrade) & _UPGRADES_REFUSED:
        # Other offers may be ignored (RFC 9110 §7.8), and must be: Java's client offers h2c with every request.
        return ApiError(501, ErrorCode.UPGRADE_NOT_SUPPORTED, "upgrades are not supported", close=True)
    if (expect := fields.get(b"expect")) is not None and expect.lower() != b"100-continue":
        return ApiError(417, ErrorCode.EXPECTATION_FAILED, "the only expectation known is 100-continue")
    if (coding := fields.get(b"transfer-encoding")) is not None and coding.lower() != b"chunked":
        return ApiError(400, ErrorCode.INVALID_REQUEST, "the only transfer coding known is chunked", close=True)
    if coding is not None and http10:
        # RFC 9112 §6.1: its framing is faulty, somebody in front of us may see another end of this body.
        return ApiError(400, ErrorCode.INVALID_REQUEST, "HTTP/1.0 has no transfer codings", close=True)
    if (length := fields.get(b"content-length")) is not None and int(length) > settings.max_body_bytes:
        return too_large(settings.max_body_bytes)
    if settings.max_inflight is not None and in_flight >= settings.max_inflight:
        return ApiError(429, ErrorCode.OVERLOADED, "too many requests in flight", retry_after=1)
    return None
