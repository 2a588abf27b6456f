"""The engine's answer on its way to the client.

Runs in the event loop's read callback of the engine's connection: bytes in, the same bytes in clean framing
out, nobody woken. The handler sleeps until the answer has ended or the client's buffer is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.downstream import Downstream
from wings_proxy.exchange import Exchange, UpstreamFault
from wings_proxy.headers import response_head
from wings_proxy.http1 import (
    LAST_CHUNK,
    ChunkedDecoder,
    Framing,
    ProtocolError,
    ResponseHead,
    encode_chunk,
    find_head,
    parse_head,
)
from wings_proxy.inflight import Inflight
from wings_proxy.metrics import RouteMetrics
from wings_proxy.upstream import Connection, UpstreamError

MAX_INTERIM_RESPONSES = 32
HEAD_SECONDS = 30.0
"""From the first byte of a response head to its last; an engine's head is one write."""


class Relay:
    """One answer; the `upstream.Receiver` of its connection."""

    __slots__ = (
        "_chunked",
        "_client",
        "_clock",
        "_connection",
        "_convert",
        "_decoder",
        "_exchange",
        "_first_byte_seconds",
        "_head_request",
        "_held",
        "_idle_seconds",
        "_inflight",
        "_instruments",
        "_interim",
        "_loop",
        "_previous",
        "_remaining",
        "_request_id",
        "_surplus",
        "_timer",
        "_waiter",
        "done",
        "error",
        "head",
        "paused",
        "progress",
        "request_sent",
        "responded",
        "unread",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        connection: Connection,
        client: Downstream,
        exchange: Exchange,
        instruments: RouteMetrics,
        inflight: Inflight,
        *,
        request_id: bytes,
        head_request: bool,
        first_byte_seconds: float | None,
        idle_seconds: float | None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._connection = connection
        self._client = client
        self._exchange = exchange
        self._instruments = instruments
        self._inflight = inflight
        self._request_id = request_id
        self._head_request = head_request
        self._first_byte_seconds = first_byte_seconds
        self._idle_seconds = idle_seconds
        self._convert: Callable[[bytes], bytes] = self._head
        self._decoder: ChunkedDecoder | None = None
        self._held = b""
        self._interim = 0
        self._remaining = 0
        self._chunked = False
        self._surplus = False
        self._previous = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.head: ResponseHead | None = None
        self.done = False
        self.error: UpstreamError | ApiError | None = None
        """Why there is no whole answer: a fault of the engine, or of the request's body."""
        self.paused = False
        self.responded = False
        """Whether any byte of an answer came; then a request must not be sent again."""
        self.unread = False
        """Whether the engine provably did not read the request to its end."""
        self.request_sent = False
        """Whether the whole request was handed to the connection; set by the handler."""
        self.progress = clock()
        """Clock time at which the request, later the answer, last moved."""
        if first_byte_seconds is not None:
            self._timer = loop.call_later(first_byte_seconds, self._late)

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another exchange."""
        return (
            self.done
            and self.error is None
            and self.request_sent
            and not self._surplus
            and self.head is not None
            and self.head.keep_alive
        )

    # ---- called by the connection

    def data_received(self, data: bytes) -> None:
        """Pass bytes of the answer on."""
        self._inflight.last_byte = self._clock()
        try:
            wire = self._convert(data)
        except ProtocolError as error:
            self.fail(UpstreamFault.BAD_BODY if self.head else UpstreamFault.BAD_HEAD, str(error))
            return
        if wire and not self._client.write(wire) and not self.done:
            self.paused = True
            self._connection.pause_reading()
            self.wake()

    def connection_ended(self, *, orderly: bool, unread: bool) -> None:
        """End the answer, as a whole one if its framing says that the connection's end is its end."""
        if self.done:
            self._surplus = True
        elif self.head is None:
            self.unread = unread
            self.fail(UpstreamFault.CLOSED, "the engine closed the connection without an answer")
        elif self.head.framing is Framing.CLOSE and orderly:
            if self._chunked:
                self._client.write(LAST_CHUNK)
            self._finish()
        else:
            self.fail(UpstreamFault.TRUNCATED, "the engine closed the connection inside an answer")

    # ---- called by the handler

    async def changed(self) -> None:
        """Wait until the answer ended, the client's buffer is full, or somebody calls `wake`."""
        if not self.done and not self.paused:
            self._waiter = self._loop.create_future()
            await self._waiter

    def wake(self, _: object = None) -> None:
        """Let `changed` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def resume(self) -> None:
        """Read on: the client took what it had."""
        self.paused = False
        self.progress = self._clock()
        self._connection.resume_reading()

    def fail(self, fault: UpstreamFault, detail: str) -> None:
        """End the answer as broken, unless it has ended."""
        if not self.done:
            self.error = UpstreamError(fault, detail)
            self._finish()

    def refuse(self, error: ApiError) -> None:
        """End the answer because the request cannot go on, unless it has ended."""
        if not self.done:
            self.error = error
            self._finish()

    def close(self) -> None:
        """Stop the timer; nothing else is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end_broken(self, error: ApiError) -> None:
        """Give an answer that has begun an end nobody can take for a whole one.

        An event stream ends with an event that says why, and then without its last chunk; anything else is
        cut with a reset. Never a clean end: openai-python takes one without `[DONE]` for a finished answer.
        """
        if self.head is None or not self.head.is_event_stream or self._convert == self._length:
            self._client.reset()
            return
        self._client.keep_alive = False
        self._client.write(encode_chunk(error.event) if self._chunked else error.event)

    # ---- the states, each turning what came into what goes out

    def _head(self, data: bytes) -> bytes:
        self.responded = True
        self._held += data
        while end := find_head(self._held):
            head = parse_head(self._held[:end], head_request=self._head_request)
            rest = self._held[end:]
            if head.status >= 200:
                self._held = b""
                return self._begin(head, rest)
            self._held = rest
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise ProtocolError(f"more than {MAX_INTERIM_RESPONSES} interim responses")
        if self._held and self._timer is None:
            self._timer = self._loop.call_later(HEAD_SECONDS, self._late)
        return b""

    def _begin(self, head: ResponseHead, rest: bytes) -> bytes:
        client = self._client
        self.close()
        self.head = head
        self._exchange.status = head.status
        framing = head.framing
        if framing is Framing.LENGTH:
            self._remaining = head.length
            self._convert = self._length
        elif framing is Framing.NONE:
            self._convert = self._nothing
            self._finish()
        else:
            self._chunked = not client.http10
            if client.http10:
                client.keep_alive = False
            if framing is Framing.CHUNKED:
                self._decoder = ChunkedDecoder()
                self._convert = self._chunks
            else:
                self._convert = self._until_close
        if not self.request_sent:
            client.keep_alive = False
        if self._idle_seconds is not None and not self.done:
            self.progress = self._inflight.last_byte
            self._timer = self._loop.call_later(self._idle_seconds, self._late)
        wire = response_head(
            head, request_id=self._request_id, chunked=self._chunked, connection=client.connection_field
        )
        return wire + self._convert(rest) if rest else wire

    def _length(self, data: bytes) -> bytes:
        self._remaining -= len(data)
        if self._remaining <= 0:
            if self._remaining:
                self._surplus = True
                data = data[: self._remaining]
            self._convert = self._nothing
            self._finish()
        self._count(len(data))
        return data

    def _chunks(self, data: bytes) -> bytes:
        decoder = self._decoder
        assert decoder is not None
        if self._chunked and (size := decoder.whole_chunks(data)):
            self._count(size)
            return data
        pieces = decoder.feed(data)
        if pieces:
            self._count(sum(map(len, pieces)))
            if self._chunked:
                pieces = [encode_chunk(piece) for piece in pieces]
        if decoder.done:
            self._surplus = decoder.surplus
            self._convert = self._nothing
            self._finish()
            if self._chunked:
                pieces.append(LAST_CHUNK)
        return b"".join(pieces)

    def _until_close(self, data: bytes) -> bytes:
        self._count(len(data))
        return encode_chunk(data) if self._chunked else data

    def _nothing(self, _data: bytes) -> bytes:
        """Drop what follows the answer; the connection is not used again."""
        self._surplus = True
        return b""

    def _count(self, size: int) -> None:
        now = self.progress = self._inflight.last_byte
        exchange = self._exchange
        exchange.sent_bytes += size
        exchange.chunks += 1
        if self._previous:
            if self.head is not None and self.head.is_event_stream:
                self._instruments.gap.observe(now - self._previous)
        else:
            exchange.first_byte = now
            if self.head is not None and self.head.is_event_stream:
                self._instruments.first_token.observe(now - exchange.started)
        self._previous = now

    def _finish(self) -> None:
        self.done = True
        self.close()
        self.wake()

    def _late(self) -> None:
        """Fail if nothing moved for the phase's limit; else look again when it could have passed."""
        self._timer = None
        if self.head is not None:
            limit, fault = self._idle_seconds, UpstreamFault.IDLE_TIMEOUT
        else:
            limit, fault = self._first_byte_seconds, UpstreamFault.FIRST_BYTE_TIMEOUT
        now = self._clock()
        left = 0.0
        if limit is not None:
            left = limit if self.paused else self.progress + limit - now
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._late)
        else:
            self.fail(fault, "the engine sent nothing for too long")


def upstream_api_error(error: UpstreamError) -> ApiError:
    """Return the answer a client gets for a fault of the engine before its response head."""
    fault = error.fault
    if fault in {UpstreamFault.CONNECT_REFUSED, UpstreamFault.CONNECT_TIMEOUT, UpstreamFault.CONNECT_FAILED}:
        return ApiError(503, ErrorCode.ENGINE_UNREACHABLE, "the engine cannot be reached", retry_after=1)
    if fault in {UpstreamFault.FIRST_BYTE_TIMEOUT, UpstreamFault.IDLE_TIMEOUT}:
        return ApiError(504, ErrorCode.UPSTREAM_TIMEOUT, str(error))
    if fault is UpstreamFault.CUT:
        return ApiError(503, ErrorCode.DRAINING, "this server is shutting down", retry_after=1, close=True)
    return ApiError(502, ErrorCode.UPSTREAM_ERROR, f"the engine failed: {error}")
