"""One request to the engine and its answer back: admission, sending, the answer, the honest end.

The client's connection begins an exchange and tells it when its client leaves or does not read, the engine's brings the
answer, timers bring deadlines. A task exists only while the gate, a body or a connection must be waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from aiohttp import StreamReader
from aiohttp.http import RawRequestMessage

from wings_proxy.proxy.admission import check, too_large
from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.proxy.downstream import Downstream
from wings_proxy.proxy.exchange import AbortPhase, Exchange, UpstreamFault
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.proxy.headers import RequestFields, error_response, request_head, request_id
from wings_proxy.proxy.http1 import LAST_CHUNK, encode_chunk
from wings_proxy.proxy.relay import Relay
from wings_proxy.proxy.upload import SMALL_BODY_BYTES, Body, pump_body
from wings_proxy.proxy.upstream import Connection, UpstreamError
from wings_proxy.proxy.whole_body import WholeBody

logger = logging.getLogger(__name__)

STATUS_CLIENT_LEFT = 499  # nginx's, for a client that left before the answer's end; only counted, never sent

_OWN_FAULT = ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})  # RFC 9110 §9.2.2


class Forwarding:
    """The life of one request."""

    # Few requests need these: defaults on the class make an exchange cheap to begin.
    _relay: Relay | None = None
    _connection: Connection | None = None
    _task: asyncio.Task[None] | None = None
    """What must be waited for before the engine can be asked; then the body on its way."""
    _stall: asyncio.TimerHandle | None = None
    _body: bytes | None = None  # the whole body, as it was sent; None if it is streamed
    _admitted = False
    _sought = False  # whether a connection to the engine was opened for it, or tried to be
    _sent = False  # whether the engine was sent the whole request
    _over = False  # whether the answer is out and accounted for

    def __init__(
        self,
        owner: Forwarder,
        message: RawRequestMessage,
        fields: RequestFields,
        content: StreamReader | WholeBody,
        client: Downstream,
        route: str,
        began: float,
        on_end: Callable[[], None],
    ) -> None:
        """Take a request, its body *content*, and the *route* it counts under; `begin` begins it.

        *began*: the monotonic time its head was here. *on_end* is called once, perhaps while it begins: the answer is
        out, the client has room, and `client.keep_alive` says whether the connection goes on; not if the client left.
        """
        self._owner = owner
        self._message = message
        self._content = content
        self._client = client
        self._on_end = on_end
        self._fields = fields
        self._request_id = request_id(fields.read.get(b"x-request-id"))
        self._exchange = Exchange(route, message.method, self._request_id.decode(), began, fields.trace_id)

    # ---- told by the client's connection

    def begin(self) -> None:
        """Send the request on, at once if nothing has to be waited for."""
        owner = self._owner
        if owner.closing:
            self._client.keep_alive = False
        try:
            self._admit()
            connection = owner.pool.take() if owner.gate.open and self._content.is_eof() else None
            if connection is None:
                self._in_task(self._prepare)
            else:
                self._send(connection, self._body_at_hand())
        except ApiError as error:
            self._refuse(error)
        except Exception:
            logger.exception("request %s failed in the proxy", self._exchange.request_id)
            self._refuse(_OWN_FAULT)

    @property
    def answering(self) -> bool:
        """Whether the answer's head is out."""
        return bool(self._exchange.status)

    def client_left(self, *, vanished: bool = False) -> None:
        """End the exchange: nobody is there any more, or nobody answers any more (*vanished*)."""
        self._end_stall()
        if not self._over:
            if vanished or self._relay is None or not self._relay.said_all:
                self._note_leaving(stalled=vanished)
            self._let_go()
            self._finish()

    def pause(self) -> None:
        """Stop the answer: the client's buffer is full."""
        if self._relay is not None:
            self._relay.pause()
        if self._stall is None:
            self._stall = self._owner.pool.loop.call_later(self._owner.settings.write_stall_seconds, self._stalled)

    def resume(self) -> None:
        """Go on: the client has read."""
        self._end_stall()
        if self._over:
            self._on_end()
        elif self._relay is not None:
            self._relay.resume()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        """Cut a client that does not read at all: who asks and asks and never reads would have us keep every answer."""
        self._stall = None
        if self._over:
            self._owner.metrics.aborts[AbortPhase.STALL] += 1
        else:
            self._note_leaving(stalled=True)
            self._let_go()
            self._finish()
        self._client.reset()

    # ---- to the engine

    def _admit(self) -> None:
        owner, message = self._owner, self._message
        refusal = owner.authorize(self._fields.keys) if owner.authorize is not None else None
        refusal = refusal or check(
            message.method,
            message.path,
            self._fields.read,
            owner.settings,
            http10=self._client.http10,
            in_flight=owner.inflight.count,
        )
        if refusal is not None:
            raise refusal
        owner.inflight.begin()
        self._admitted = True

    def _in_task(self, steps: Callable[[], Coroutine[None, None, None]]) -> None:
        name = f"request {self._exchange.request_id}"
        self._task = self._owner.pool.loop.create_task(self._guarded(steps), name=name)

    async def _guarded(self, steps: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await steps()
        except ApiError as error:
            self._stop(error)
        except Exception:
            logger.exception("request %s failed in the proxy", self._exchange.request_id)
            self._stop(_OWN_FAULT)

    def _stop(self, error: ApiError) -> None:
        """End a request that cannot go on, wherever it is."""
        if self._relay is not None:
            self._relay.refuse(error)
        else:
            self._refuse(error)

    async def _prepare(self) -> None:
        """Wait for what the request lacks, send it, and stream a body that is not small."""
        owner = self._owner
        if not owner.gate.open and (refusal := await owner.gate.admit()) is not None:
            raise refusal
        body = self._body_at_hand() if self._content.is_eof() else await self._small_body()
        self._send(owner.pool.take() or await self._connect(), body)
        if body is None:
            await self._upload()

    async def _repeat(self) -> None:
        """Send the request again, on a new connection."""
        self._send(await self._connect(), self._body)

    def _body_at_hand(self) -> bytes:
        """Return the body that came with its head, as it is sent."""
        return self._counted(self._content.read_nowait())

    async def _small_body(self) -> bytes | None:
        """Return the body, as it is sent, once it is here; None if it is to be streamed."""
        if b"expect" in self._fields.read and not self._client.http10:
            self._client.write(_CONTINUE)
        if self._fields.chunked or int(self._fields.read.get(b"content-length", b"0")) > SMALL_BODY_BYTES:
            return None
        return self._counted(await self._reader().read_all())

    def _counted(self, body: bytes) -> bytes:
        limit = self._owner.settings.max_body_bytes
        if len(body) > limit:
            raise too_large(limit)
        self._exchange.received_bytes = len(body)
        if self._fields.chunked:
            return encode_chunk(body) + LAST_CHUNK if body else LAST_CHUNK
        return body

    def _reader(self) -> Body:
        assert isinstance(self._content, StreamReader)
        owner = self._owner
        return Body(self._content, self._client, owner.settings.body_patience_seconds, owner.upload_pace)

    async def _connect(self) -> Connection:
        self._sought = True
        try:
            return await self._owner.pool.connect()
        except UpstreamError as error:
            self._note(error)
            raise error.api_error from error

    def _send(self, connection: Connection, body: bytes | None) -> None:
        """Send the request on *connection*, all of it if its body is here."""
        owner, message = self._owner, self._message
        self._body, self._connection = body, connection
        relay = self._relay = Relay(
            owner.pool.loop,
            owner.clock,
            connection,
            self._client,
            self._exchange,
            owner.metrics.route(self._exchange.route),
            owner.inflight,
            owner.outbox,
            owner.settings,
            self._answered,
        )
        owner.relays.add(relay)
        connection.begin(relay)
        head = request_head(
            message.method,
            message.path,
            self._fields,
            host=owner.host,
            request_id=self._request_id,
            authorization=owner.settings.engine_authorization,
        )
        if body is None:
            connection.write(head)
        else:
            connection.write(head + body)
            self._whole_request_sent()
        if self._client.writing_paused:
            self.pause()
        if not connection.open:
            relay.connection_ended(orderly=True, unread=True)  # between its opening and here, when nobody listened

    def _whole_request_sent(self) -> None:
        relay, owner = self._relay, self._owner
        assert relay is not None
        relay.request_sent = True
        relay.progress = owner.clock()
        if not self._sent:
            self._sent = True
            owner.inflight.sent()

    async def _upload(self) -> None:
        """Stream the request's body."""
        relay, connection, owner = self._relay, self._connection, self._owner
        assert relay is not None
        assert connection is not None

        def moved() -> None:
            relay.progress = owner.clock()

        chunked, limit = self._fields.chunked, owner.settings.max_body_bytes
        await pump_body(self._reader(), connection, self._exchange, moved, chunked=chunked, limit=limit)
        self._whole_request_sent()

    # ---- ends

    def _answered(self) -> None:
        """Look at what the relay came to."""
        relay, connection = self._relay, self._connection
        assert relay is not None
        assert connection is not None
        self._let_go()
        if relay.error is None:
            self._finish()
        elif self._may_repeat(relay, connection):
            self._exchange.retried = 1
            self._in_task(self._repeat)
        else:
            self._broken(relay, relay.error)

    def _let_go(self) -> None:
        """Give the connection back, or close it, and end the task."""
        if (task := self._task) is not None:
            self._task = None
            if task is not asyncio.current_task(self._owner.pool.loop):
                task.cancel()
        relay, connection = self._relay, self._connection
        if relay is not None and connection is not None:
            self._relay = self._connection = None
            relay.close()
            self._owner.relays.discard(relay)
            self._owner.pool.give_back(connection, reusable=relay.reusable)

    def _may_repeat(self, relay: Relay, connection: Connection) -> bool:
        """Whether the request can be sent again without a risk that the engine runs it twice.

        Only on a connection that had served before, whose closing crossed the request; only if no byte of an answer
        came and the whole request is still here; and, unless repeating is harmless by the method's definition
        (RFC 9110 §9.2.2), only if the engine provably did not read it to its end.
        """
        return (
            connection.uses > 1
            and not self._exchange.retried
            and isinstance(relay.error, UpstreamError)
            and relay.error.fault is UpstreamFault.CLOSED
            and not relay.responded
            and self._body is not None
            and (relay.unread or self._exchange.method in _IDEMPOTENT)
        )

    def _broken(self, relay: Relay, error: UpstreamError | ApiError) -> None:
        """End an exchange that failed: as an answer of ours if the client has not got a head yet."""
        if isinstance(error, UpstreamError):
            self._note(error)
            error = error.api_error
        if relay.head is None:
            self._refuse(error)
            return
        self._exchange.error_code = error.code
        relay.end_broken(error)
        self._finish()

    def _note(self, error: UpstreamError) -> None:
        self._exchange.fault = error.fault
        if self._owner.on_fault is not None:
            self._owner.on_fault(error.fault)

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error of our own; after a head was sent the only answer left is a reset."""
        exchange, client = self._exchange, self._client
        self._let_go()
        exchange.error_code = error.code
        if exchange.status:
            client.reset()
            self._finish()
            return
        exchange.status = error.status
        # Bytes of a body that nobody reads would pass for the next request.
        client.keep_alive = client.keep_alive and not error.close and self._content.is_eof()
        client.write(
            error_response(
                error,
                request_id=self._request_id,
                head_request=exchange.method == "HEAD",
                connection=client.connection_field,
                extra=client.extra,
            )
        )
        self._finish()

    def _finish(self) -> None:
        """Account for the exchange, and let the client go on as soon as it has room."""
        owner, exchange = self._owner, self._exchange
        self._over = True
        if self._admitted:
            owner.inflight.end(sent=self._sent, given_up=exchange.given_up)
        ended = owner.clock()
        owner.metrics.count(exchange, ended)
        if owner.access_log is not None:
            owner.access_log(exchange, ended)
        if self._client.writing_paused and not self._client.is_gone:
            self.pause()
        else:
            self._end_stall()
            if not self._client.is_gone:
                self._on_end()

    def _note_leaving(self, *, stalled: bool) -> None:
        """Note where the client was when it left, or that it took nothing."""
        exchange, relay = self._exchange, self._relay
        exchange.status = STATUS_CLIENT_LEFT
        if stalled:
            exchange.abort_phase = AbortPhase.STALL
        elif relay is None:
            exchange.abort_phase = AbortPhase.CONNECT if self._sought else AbortPhase.ADMISSION
        elif relay.head is not None:
            exchange.abort_phase = AbortPhase.STREAM
        else:
            exchange.abort_phase = AbortPhase.WAIT if relay.request_sent else AbortPhase.UPLOAD
