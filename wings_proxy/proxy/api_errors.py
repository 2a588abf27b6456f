"""Our own error answers, in the shape OpenAI clients parse.

The codes are a closed set: clients may switch on them, and they are label values of a metric. An error of the
engine is never turned into one of these; it passes as the engine wrote it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

ORIGIN_HEADER = b"X-Wings-Origin"
"""Marks an answer that this proxy made itself; engines' answers never carry it."""


class ErrorCode(StrEnum):
    """The value of `error.code`."""

    ENGINE_NOT_READY = "engine_not_ready"
    ENGINE_FAILED = "engine_failed"
    ENGINE_UNREACHABLE = "engine_unreachable"
    DRAINING = "draining"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    OVERLOADED = "overloaded"
    REQUEST_TOO_LARGE = "request_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    INVALID_REQUEST = "invalid_request"
    EXPECTATION_FAILED = "expectation_failed"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UPGRADE_NOT_SUPPORTED = "upgrade_not_supported"
    INTERNAL_ERROR = "internal_error"


_REASONS = {
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


@dataclass(slots=True, eq=False)
class ApiError(Exception):
    """An answer of our own that is not a success; raised, or handed round as a value.

    `message` goes to the client: it names no file, key, prompt or internal. `retry_after` is in seconds.
    `close` ends the connection after the answer. `challenges` is how a 401 says which credentials it takes
    (RFC 9110 §11.6.1), `allow` how a 405 says which methods there are (§15.5.6).
    """

    status: int
    code: ErrorCode
    message: str
    retry_after: int | None = None
    close: bool = False
    challenges: tuple[bytes, ...] = (b"Bearer",)
    allow: bytes = b""

    def __post_init__(self) -> None:
        if self.status not in _REASONS:
            raise ValueError(f"status {self.status} is not one an ApiError can have: {sorted(_REASONS)}")

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    @property
    def reason(self) -> bytes:
        """The reason phrase of the status (RFC 9110 §15)."""
        return _REASONS[self.status]

    @property
    def type(self) -> str:
        """The value of `error.type`, OpenAI's coarse class of the fault."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def body(self) -> bytes:
        """The JSON document `{"error": {"message", "type", "param", "code"}}`, on one line."""
        error = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Header fields of the answer, except those of framing and connection."""
        fields = [(b"Content-Type", b"application/json"), (ORIGIN_HEADER, b"proxy")]
        if self.retry_after is not None:
            fields.append((b"Retry-After", b"%d" % self.retry_after))
        if self.status == 401:
            # A field each: browsers do not tell two in one field apart.
            fields += [(b"WWW-Authenticate", challenge) for challenge in self.challenges]
        if self.status == 405:
            fields.append((b"Allow", self.allow))
        return fields

    @property
    def event(self) -> bytes:
        """The error as a server-sent event, for a stream that has already begun; it must stand between two events."""
        return b"data: " + self.body + b"\n\n"
