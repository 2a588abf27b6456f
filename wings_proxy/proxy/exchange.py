"""The facts about one forwarded request, as metrics and access log need them."""

from __future__ import annotations

from enum import StrEnum

from wings_proxy.proxy.api_errors import ErrorCode

# Answered by an engine's HTTP server alone, with its core hanging or not: routes, as in the metrics.
_WITHOUT_WORK = frozenset(
    {
        "/tokenize",
        "/detokenize",
        "/v1/tokenize",
        "/v1/detokenize",
        "/v1/messages/count_tokens",
        "/v1/responses/*/cancel",
        "/apply-template",
    }
)


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
    """Cut by us: for the write-stall deadline the client read nothing, or its machine did not answer at all."""


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


class Exchange:
    """What is known about one request; filled in as it goes, read when it ended."""

    # Most requests change few of these: defaults on the class make one cheap to begin.
    status: int = 0
    """The status the client got; 499 if it left before the answer's end, 0 while there is none."""
    first_byte: float | None = None
    """Monotonic time of the answer's first body byte."""
    newest_byte: float = 0.0
    """The same of its newest one."""
    is_event_stream: bool = False
    """Whether the answer is a stream of events; then it is one token after the other that comes."""
    received_bytes: int = 0
    sent_bytes: int = 0
    events: int = 0
    """Events of an event stream that came to their end; of any other answer 0."""
    retried: int = 0
    abort_phase: AbortPhase | None = None
    fault: UpstreamFault | None = None
    error_code: ErrorCode | None = None

    def __init__(self, route: str, method: str, request_id: str, started: float, trace_id: str = "") -> None:
        """Begin with what its head says; *started* is the monotonic time at which that was complete."""
        self.route = route
        self.method = method
        self.request_id = request_id
        self.started = started
        self.trace_id = trace_id

    @property
    def asks_for_work(self) -> bool:
        """Whether only an engine whose core works can answer it with a 200."""
        return self.method == "POST" and self.route not in _WITHOUT_WORK

    @property
    def given_up(self) -> bool:
        """Whether somebody who waited for the engine did not wait for its answer's end."""
        waited = self.abort_phase in (AbortPhase.WAIT, AbortPhase.STREAM)
        return waited or self.fault in (UpstreamFault.FIRST_BYTE_TIMEOUT, UpstreamFault.IDLE_TIMEOUT)

    @property
    def went_well(self) -> bool:
        """Whether there is nothing to say about its end."""
        return self.error_code is None and self.abort_phase is None and self.fault is None
