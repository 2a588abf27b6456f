"""The engine's answer on its way to the client.

Runs in the read callback of the engine's connection: bytes in, the same bytes in clean framing out, nobody woken.
Events go out at the end of the loop's turn (`outbox`), all else at once, behind what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wings_proxy.proxy.admission import ForwardSettings
from wings_proxy.proxy.api_errors import ApiError
from wings_proxy.proxy.downstream import Downstream
from wings_proxy.proxy.event_stream import DONE, ENDS, EventCounter, chunk_of_one_event
from wings_proxy.proxy.exchange import Exchange, UpstreamFault
from wings_proxy.proxy.headers import AnswerHead, answer_head, response_head
from wings_proxy.proxy.http1 import (
    LAST_CHUNK,
    BodyError,
    ChunkedDecoder,
    Framing,
    ProtocolError,
    ResponseHead,
    encode_chunk,
    find_head,
)
from wings_proxy.proxy.inflight import Inflight
from wings_proxy.proxy.outbox import Outbox
from wings_proxy.proxy.request_metrics import RouteMetrics
from wings_proxy.proxy.upstream import Connection, UpstreamError

MAX_INTERIM_RESPONSES = 32
_NO_BODY = frozenset({Framing.NONE, Framing.LENGTH})  # a length of 0
_MOST_HELD_BYTES = 16 * 1024  # until the turn's end
HEAD_SECONDS = 30.0
"""From the first byte of a response head to its last; an engine's head is one write."""


def _nobody() -> None:
    """Nobody is told."""


def _nothing(_data: bytes) -> bytes:
    """Nothing goes on."""
    return b""


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
    """Whether the whole request was handed to the connection; set by who sends it."""
    _held = b""
    _interim = 0
    _remaining = 0
    _chunked = False
    _surplus = False
    _events: EventCounter | None = None
    """Set if the answer is an event stream."""
    _next_event = False
    """Whether the next byte begins a chunk and an event, in an answer whose chunks are passed on and events counted."""
    _works = False
    _unread = False
    _now = 0.0
    """When the newest bytes came."""
    _decoder: ChunkedDecoder  # of an answer in chunks
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        connection: Connection,
        client: Downstream,
        exchange: Exchange,
        instruments: RouteMetrics,
        inflight: Inflight,
        outbox: Outbox,
        settings: ForwardSettings,
        on_end: Callable[[], None],
    ) -> None:
        """Take what it works with; *on_end* is called once, when the answer ended or failed."""
        self._loop = loop
        self._clock = clock
        self._connection = connection
        self._client = client
        self._exchange = exchange
        self._instruments = instruments
        self._inflight = inflight
        self._outbox = outbox
        self._settings = settings
        self._on_end = on_end
        self._convert: Callable[[bytes], bytes] = self._head
        self.progress = clock()
        """Clock time at which the request last moved, or reading went on."""
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

    @property
    def said_all(self) -> bool:
        """Whether all that a client waits for is out, although the answer's framing has not come to its end."""
        return self._events is not None and self._last.endswith(DONE)

    # ---- called by the connection

    def data_received(self, data: bytes) -> None:
        """Pass bytes of the answer on."""
        self._now = now = self._clock()
        if self._next_event and (size := chunk_of_one_event(data)):  # goes as it came; `_count` without its call
            if self._works:
                self._inflight.last_work = now
            self._instruments.arrived(self._exchange, now, size, 1)
            self._last = data
            self._outbox.put(self._client, data)
            return
        try:
            wire = self._convert(data)
        except BodyError as error:
            if wire := b"".join(error.pieces):
                self._last = wire
                self._outbox.put(self._client, wire)
            self.fail(UpstreamFault.BAD_BODY, str(error))
            return
        except ProtocolError as error:
            self.fail(UpstreamFault.BAD_HEAD, str(error))
            return
        if wire:
            self._last = wire
            if self._events is None or self.done or len(data) > _MOST_HELD_BYTES:
                self._outbox.flush()
                self._client.write(wire)
            else:
                self._outbox.put(self._client, wire)
        if self.done:
            self._end()

    def connection_ended(self, *, orderly: bool, unread: bool) -> None:
        """End the answer, as a whole one if its framing says that the connection's end is its end."""
        if self.done:
            self._surplus = True
        elif self.head is None:
            self.unread = unread
            self.fail(UpstreamFault.CLOSED, "the engine closed the connection without an answer")
        elif self.head.framing is Framing.CLOSE and orderly:
            self._finish()
            if self._chunked:
                self._client.write(LAST_CHUNK)
            self._end()
        else:
            self.fail(UpstreamFault.TRUNCATED, "the engine closed the connection inside an answer")

    # ---- called by who began it

    def pause(self) -> None:
        """Read no further, unless all is here: the client's buffer is full."""
        if not self.done:
            if self.request_sent and not self.paused:
                self._unread = True
                self._inflight.stop_reading()
            self.paused = True
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read on: the client took what it had."""
        self.paused = False
        self._read_on()
        self.progress = self._clock()
        self._connection.resume_reading()

    def fail(self, fault: UpstreamFault, detail: str) -> None:
        """End the answer as broken, unless it has ended."""
        if not self.done:
            self.error = UpstreamError(fault, detail)
            self._finish()
            self._end()

    def refuse(self, error: ApiError) -> None:
        """End the answer because the request cannot go on, unless it has ended."""
        if not self.done:
            self.error = error
            self._finish()
            self._end()

    def close(self) -> None:
        """Stop the timer and tell nobody anything any more; nothing else is held."""
        self._on_end = _nobody
        self._read_on()
        self._convert = _nothing  # a method of its own kept there would leave it to the garbage collector
        self._disarm()

    def _read_on(self) -> None:
        if self._unread:
            self._unread = False
            self._inflight.read_on()

    def _disarm(self) -> None:
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
        between_events = not self._exchange.sent_bytes or self._last.endswith(ENDS[self._chunked])
        if self._events is None or self._remaining or not (between_events or self._chunked):
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
            answer, digits = answer_head(self._held[:end], head_request=self._exchange.method == "HEAD")
            rest = self._held[end:]
            if answer.head.status >= 200:
                self._held = b""
                return self._begin(answer, digits, rest)
            self._held = rest
            self._interim += 1
            if self._interim > MAX_INTERIM_RESPONSES:
                raise ProtocolError(f"more than {MAX_INTERIM_RESPONSES} interim responses")
        if self._settings.first_byte_timeout_seconds is None:
            if not self._held:
                self._disarm()  # what had begun was an interim answer, and the engine may think on
            elif self._timer is None:
                self._timer = self._loop.call_later(HEAD_SECONDS, self._late)
        return b""

    def _begin(self, answer: AnswerHead, digits: bytes, rest: bytes) -> bytes:
        client = self._client
        self._disarm()
        self.head = head = answer.head
        self._events = EventCounter() if head.is_event_stream else None
        self._exchange.status = head.status
        self._exchange.is_event_stream = head.is_event_stream
        # Nor is a head: vLLM begins a stream before the request is scheduled. Nor a refusal, nor a list of models.
        self._works = head.status == 200 and self._exchange.asks_for_work
        framing = head.framing
        if framing is Framing.LENGTH and (length := int(digits) if digits else head.length):
            self._remaining = length
            self._convert = self._length
        elif framing in _NO_BODY:
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
            self.progress = self._now
            self._timer = self._loop.call_later(self._settings.idle_timeout_seconds, self._late)
        wire = response_head(
            answer,
            digits,
            request_id=self._exchange.request_id.encode(),
            chunked=self._chunked,
            connection=client.connection_field,
            extra=client.extra,
        )
        if not rest:
            return wire
        try:
            return wire + self._convert(rest)
        except BodyError as error:
            error.pieces.insert(0, wire)
            raise

    def _length(self, data: bytes) -> bytes:
        self._remaining -= len(data)
        if self._remaining <= 0:
            if self._remaining:
                self._surplus = True
                data = data[: self._remaining]
            self._finish()
        self._count(len(data), self._ended_in(data))
        return data

    def _chunks(self, data: bytes) -> bytes:
        decoder, events, wire, start = self._decoder, self._events, list[bytes](), 0
        # A read that fills its buffer begins and ends inside chunks; those in between may still go as they came.
        last = len(data) if events is None else data.rfind(events.chunk_end) + len(events.chunk_end)
        for end in (decoder.left, last, len(data)):
            if start < end and not self.done:
                self._some_chunks(decoder, data[start:end], wire)
                start = end
        self._surplus = self._surplus or start < len(data)
        return b"".join(wire)

    def _some_chunks(self, decoder: ChunkedDecoder, data: bytes, wire: list[bytes]) -> None:
        size, events = 0, self._events
        if events is None:
            if self._chunked and (size := decoder.whole_chunks(data)):
                self._count(size, 0)
        elif self._next_event and (size := decoder.whole_chunks(data, events.chunk_end)):
            self._count(size, events.count_chunks(data))
        if size:
            wire.append(data)
            return
        try:
            wire += self._framed(decoder.feed(data))
        except BodyError as error:
            error.pieces = wire + self._framed(error.pieces)
            raise
        if decoder.done:
            self._surplus = decoder.surplus
            self._finish()
            if self._chunked:
                wire.append(LAST_CHUNK)
        elif events is not None:
            self._next_event = self._chunked and decoder.between_chunks and events.between_events

    def _framed(self, pieces: list[bytes]) -> list[bytes]:
        if pieces:
            body = b"".join(pieces)
            self._count(len(body), self._ended_in(body))
            if self._chunked:
                return [encode_chunk(piece) for piece in pieces]
        return pieces

    def _until_close(self, data: bytes) -> bytes:
        self._count(len(data), self._ended_in(data))
        return encode_chunk(data) if self._chunked else data

    def _nothing(self, _data: bytes) -> bytes:
        """Drop what follows the answer; the connection is not used again."""
        self._surplus = True
        return b""

    def _ended_in(self, body: bytes) -> int:
        return 0 if self._events is None else self._events.count(body)

    def _count(self, size: int, events: int) -> None:
        if self._works:
            self._inflight.last_work = self._now
        self._instruments.arrived(self._exchange, self._now, size, events)

    def _finish(self) -> None:
        self.done = True
        self._convert = self._nothing
        self._next_event = False
        self._outbox.flush()  # what comes now goes straight to the client
        self._disarm()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, _nobody
        on_end()

    def _late(self) -> None:
        """Fail if nothing moved for the phase's limit; else look again when it could have passed."""
        self._timer = None
        if self.head is not None:
            limit, fault = self._settings.idle_timeout_seconds, UpstreamFault.IDLE_TIMEOUT
        else:
            limit, fault = self._settings.first_byte_timeout_seconds, UpstreamFault.FIRST_BYTE_TIMEOUT
        left = 0.0
        if limit is not None:
            left = limit if self.paused else max(self.progress, self._exchange.newest_byte) + limit - self._clock()
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._late)
        else:
            self.fail(fault, "the engine sent nothing for too long")
