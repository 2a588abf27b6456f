"""The engine's answer on its way to the client.

Runs in the event loop's read callback of the engine's connection: bytes in, the same bytes in clean framing
out, nobody woken. The handler sleeps until the answer has ended or the client's buffer is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from wings_proxy.admission import ForwardSettings
from wings_proxy.api_errors import ApiError
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
# What bytes end with after a whole event (WHATWG HTML, "server-sent events"): bare, and inside a chunk's framing.
_EVENT_ENDS = {False: (b"\n\n", b"\r\n\r\n", b"\r\r"), True: (b"\n\n\r\n", b"\r\n\r\n\r\n", b"\r\r\r\n")}
HEAD_SECONDS = 30.0
"""From the first byte of a response head to its last; an engine's head is one write."""


class Relay:
    """One answer; the `upstream.Receiver` of its connection."""

    # Most answers change few of these: defaults on the class make a relay cheap to begin.
    head: ResponseHead | None = None
    done = False
    error: UpstreamError | ApiError | None = None
    """Why there is no whole answer: a fault of the engine, or of the request's body."""
    paused = False
    responded = False
    """Whether any byte of an answer came; then a request must not be sent again."""
    unread = False
    """Whether the engine provably did not read the request to its end."""
    request_sent = False
    """Whether the whole request was handed to the connection; set by the handler."""
    _held = b""
    _interim = 0
    _remaining = 0
    _chunked = False
    _surplus = False
    _events = False
    _previous = 0.0
    _decoder: ChunkedDecoder | None = None
    _timer: asyncio.TimerHandle | None = None
    _waiter: asyncio.Future[None] | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        connection: Connection,
        client: Downstream,
        exchange: Exchange,
        instruments: RouteMetrics,
        inflight: Inflight,
        settings: ForwardSettings,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._connection = connection
        self._client = client
        self._exchange = exchange
        self._instruments = instruments
        self._inflight = inflight
        self._settings = settings
        self._convert: Callable[[bytes], bytes] = self._head
        self.progress = clock()
        """Clock time at which the request, later the answer, last moved."""
        if settings.first_byte_timeout_seconds is not None:
            self._timer = loop.call_later(settings.first_byte_timeout_seconds, self._late)

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
        if not wire:
            return
        self._last = wire
        if not self._client.write(wire) and not self.done:
            self.paused = True
            self._connection.pause_reading()
            self._wake()

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

    def changed(self) -> Awaitable[None]:
        """Wait until the answer ended or the client's buffer is full; not to be called when one is so already."""
        self._waiter = self._loop.create_future()
        return self._waiter

    def _wake(self) -> None:
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

    def give_up(self) -> None:
        """End the answer here: nobody takes the rest."""
        self._surplus = True
        self._finish()

    def close(self) -> None:
        """Stop the timer; nothing else is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end_broken(self, error: ApiError) -> None:
        """Give an answer that has begun an end nobody can take for a whole one.

        An event stream ends with an event that says why, and then without its last chunk. Not when it was cut
        inside an event: half a JSON document cannot be taken back, and a blank line would hand it to the client's
        parser; then only the last chunk is missing. Anything else is cut with a reset. Never a clean end:
        openai-python takes one without `[DONE]` for a finished answer.
        """
        between_events = not self._exchange.sent_bytes or self._last.endswith(_EVENT_ENDS[self._chunked])
        if not self._events or self._convert == self._length or not (between_events or self._chunked):
            self._client.reset()
            return
        self._client.keep_alive = False
        if between_events:
            self._client.write(encode_chunk(error.event) if self._chunked else error.event)

    # ---- the states, each turning what came into what goes out

    def _head(self, data: bytes) -> bytes:
        self.responded = True
        self._held += data
        while end := find_head(self._held):
            head = parse_head(self._held[:end], head_request=self._exchange.method == "HEAD")
            rest = self._held[end:]
            if head.status >= 200:
                self._held = b""
                return self._begin(head, rest)
            self._held = rest
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise ProtocolError(f"more than {MAX_INTERIM_RESPONSES} interim responses")
        if self._settings.first_byte_timeout_seconds is None:
            if not self._held:
                self.close()  # what had begun was an interim answer, and the engine may think on
            elif self._timer is None:
                self._timer = self._loop.call_later(HEAD_SECONDS, self._late)
        return b""

    def _begin(self, head: ResponseHead, rest: bytes) -> bytes:
        client = self._client
        self.close()
        self.head = head
        self._events = head.is_event_stream
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
        if self._settings.idle_timeout_seconds is not None and not self.done:
            self.progress = self._inflight.last_byte
            self._timer = self._loop.call_later(self._settings.idle_timeout_seconds, self._late)
        wire = response_head(
            head,
            request_id=self._exchange.request_id.encode(),
            chunked=self._chunked,
            connection=client.connection_field,
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
        if exchange.first_byte is None:
            exchange.first_byte = now
            if self._events:
                self._instruments.first_token.observe(now - exchange.started)
        elif self._events:
            self._instruments.gap.observe(now - self._previous)
        self._previous = now

    def _finish(self) -> None:
        self.done = True
        self.close()
        self._wake()

    def _late(self) -> None:
        """Fail if nothing moved for the phase's limit; else look again when it could have passed."""
        self._timer = None
        if self.head is not None:
            limit, fault = self._settings.idle_timeout_seconds, UpstreamFault.IDLE_TIMEOUT
        else:
            limit, fault = self._settings.first_byte_timeout_seconds, UpstreamFault.FIRST_BYTE_TIMEOUT
        now = self._clock()
        left = 0.0
        if limit is not None:
            left = limit if self.paused else self.progress + limit - now
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._late)
        else:
            self.fail(fault, "the engine sent nothing for too long")
