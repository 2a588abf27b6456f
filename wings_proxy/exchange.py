"""The facts about one forwarded request, as metrics and access log need them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wings_proxy.api_errors import ErrorCode


class AbortPhase(StrEnum):
    """How far a request had come when the client left it."""

    ADMISSION = "admission"
    """Queued, or sending a small body that is not on its way to the engine yet."""
    CONNECT = "connect"
    UPLOAD = "upload"
    """Body on its way to the engine."""
    WAIT = "wait"
    """The engine has the request and has not answered."""
    STREAM = "stream"
    STALL = "stall"
    """Cut by us: the client did not read for the write-stall deadline."""


class UpstreamFault(StrEnum):
    """What went wrong between us and the engine."""

    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_FAILED = "connect_failed"
    CLOSED = "closed"
    """End of file or reset before a whole response head."""
    BAD_HEAD = "bad_head"
    BAD_BODY = "bad_body"
    TRUNCATED = "truncated"
    """End of file or reset inside the body."""
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    CUT = "cut"
    """Ended by us, at the drain deadline."""


@dataclass(slots=True)
class Exchange:
    """What is known about one request; filled in as it goes, read when it ended."""

    route: str
    method: str
    request_id: str
    started: float
    """Monotonic time at which the request's head was complete."""
    status: int = 0
    """The status the client got; 499 if it left before the answer's end, 0 while there is none."""
    first_byte: float | None = None
    """Monotonic time of the answer's first body byte."""
    received_bytes: int = 0
    sent_bytes: int = 0
    chunks: int = 0
    """Arrivals of body bytes from the engine; on an event stream about one per event."""
    retried: int = 0
    abort_phase: AbortPhase | None = None
    fault: UpstreamFault | None = None
    error_code: ErrorCode | None = None
