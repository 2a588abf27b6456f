"""One request to the engine and its answer back: admission, sending, waiting, the honest end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from wings_proxy.access_log import log_exchange
from wings_proxy.admission import ForwardSettings, check, too_large
from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.api_keys import Authorizer
from wings_proxy.downstream import Downstream, SentResponse
from wings_proxy.exchange import AbortPhase, Exchange, UpstreamFault
from wings_proxy.headers import CREDENTIALS, NOT_TO_ENGINE, error_response, read_fields, request_head, request_id
from wings_proxy.http1 import LAST_CHUNK, encode_chunk
from wings_proxy.inflight import Inflight
from wings_proxy.metrics import RequestMetrics
from wings_proxy.relay import Relay
from wings_proxy.upload import Body, pump_body
from wings_proxy.upstream import LOOPBACK, Connection, Pool, UpstreamError

logger = logging.getLogger(__name__)

SMALL_BODY_BYTES = 64 * 1024
"""A body announced as no longer is read before the engine is asked: one write, and it can be sent again."""

STATUS_CLIENT_LEFT = 499
"""nginx's status for a client that left before the answer's end; only counted, never sent."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})  # RFC 9110 §9.2.2


class Gate(Protocol):
    """Whether the engine's present run takes requests."""

    @property
    def open(self) -> bool:
        """True if a request may go on at once."""

    async def admit(self) -> ApiError | None:
        """Wait until it is known whether a request may go on; return the refusal, or None."""


class Forwarder:
    """Forwards requests to the engine; one per process."""

    def __init__(
        self,
        settings: ForwardSettings,
        *,
        pool: Pool,
        inflight: Inflight,
        metrics: RequestMetrics,
        gate: Gate,
        authorize: Authorizer | None = None,
        on_fault: Callable[[UpstreamFault], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what requests share.

        Without *authorize* every request passes, its credentials untouched. *on_fault* hears of each fault of the
        engine at once; it must not block. *clock* is finer than the loop's: uvloop's counts whole milliseconds and
        stands still within a pass.
        """
        self.settings = settings
        self.pool = pool
        self.inflight = inflight
        self.metrics = metrics
        metrics.in_flight = lambda: inflight.count
        metrics.idle_connections = lambda: pool.idle
        metrics.connections_opened = lambda: pool.opened
        self.gate = gate
        self.authorize = authorize
        self.on_fault = on_fault
        self.clock = clock
        self.host = f"{LOOPBACK}:{settings.engine_port}".encode()
        keeps_credentials = authorize is None and settings.engine_authorization is None
        self.dropped = NOT_TO_ENGINE if keeps_credentials else NOT_TO_ENGINE | CREDENTIALS
        self.relays: set[Relay] = set()
        self.closing = False
        """Set while draining: answers then end their client's connection."""

    def forward(self, request: web.BaseRequest, route: str) -> Awaitable[web.StreamResponse]:
        """Answer *request*; *route* is the template it is counted under.

        The result is a response that was already sent. Raises nothing but CancelledError, when the client has left.
        """
        return _Forwarding(self, request, route).run()

    def cut_all(self) -> None:
        """End every answer now, each in the honest way of its kind: the drain deadline has passed."""
        for relay in tuple(self.relays):
            relay.fail(UpstreamFault.CUT, "this server is shutting down")


class _Forwarding:
    """The life of one request."""

    __slots__ = ("client", "exchange", "fields", "owner", "relay", "request", "request_id", "sent", "sought")

    def __init__(self, owner: Forwarder, request: web.BaseRequest, route: str) -> None:
        self.owner = owner
        self.request = request
        self.fields = read_fields(request.raw_headers, dropped=owner.dropped)
        self.request_id = request_id(self.fields.read.get(b"x-request-id"))
        self.exchange = Exchange(route, request.method, self.request_id.decode(), owner.clock())
        self.client = Downstream(request)
        self.relay: Relay | None = None
        self.sought = False
        """Whether the engine was sought: a connection taken or opened."""
        self.sent = False
        """Whether the engine was sent the whole request."""

    async def run(self) -> web.StreamResponse:
        """Forward the request and account for it, however it ends."""
        owner, exchange = self.owner, self.exchange
        if owner.closing:
            self.client.keep_alive = False
        try:
            self._check()
            owner.inflight.begin()
            try:
                if not owner.gate.open and (refusal := await owner.gate.admit()) is not None:
                    raise refusal
                await self._forward()
            finally:
                owner.inflight.end(sent=self.sent)
        except ApiError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            self._left()
            raise
        except Exception:
            # aiohttp's reader fails in several ways when its connection is lost; the cancellation is on its way.
            if self.client.is_gone:
                self._left()
            else:
                logger.exception("request %s failed in the proxy", exchange.request_id)
                self._refuse(ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True))
        finally:
            ended = owner.clock()
            owner.metrics.count(exchange, ended)
            log_exchange(exchange, ended)
        if self.client.writing_paused:
            await self._let_read()
        return SentResponse(exchange.status, exchange.sent_bytes, keep_alive=self.client.keep_alive)

    def _check(self) -> None:
        owner, request = self.owner, self.request
        refusal = owner.authorize(request.raw_headers) if owner.authorize is not None else None
        refusal = refusal or check(
            request.method,
            request.raw_path,
            self.fields.read,
            owner.settings,
            http10=self.client.http10,
            in_flight=owner.inflight.count,
        )
        if refusal is not None:
            raise refusal

    # ---- to the engine

    async def _forward(self) -> None:
        owner, request = self.owner, self.request
        body = self._body_at_hand() if request.content.is_eof() else await self._small_body()
        head = request_head(
            request.method,
            request.raw_path,
            self.fields,
            host=owner.host,
            request_id=self.request_id,
            authorization=owner.settings.engine_authorization,
        )
        self.sought = True
        connection = owner.pool.take() or await self._connect()
        relay = await self._try(connection, head, body)
        if relay.error is not None and self._may_repeat(relay, connection, body):
            self.exchange.retried = 1
            relay = await self._try(await self._connect(), head, body)
        if relay.error is not None:
            self._broken(relay, relay.error)

    def _body_at_hand(self) -> bytes:
        """Return the body that came with its head, as it is sent."""
        return self._counted(self.request.content.read_nowait())

    async def _small_body(self) -> bytes | None:
        """Return the body, as it is sent, once it is here; None if it is to be streamed."""
        if b"expect" in self.fields.read and not self.client.http10:
            self.client.write(_CONTINUE)
        if self.fields.chunked or int(self.fields.read.get(b"content-length", b"0")) > SMALL_BODY_BYTES:
            return None
        return self._counted(await self._body().read_all())

    def _counted(self, body: bytes) -> bytes:
        limit = self.owner.settings.max_body_bytes
        if len(body) > limit:
            raise too_large(limit)
        self.exchange.received_bytes = len(body)
        if self.fields.chunked:
            return encode_chunk(body) + LAST_CHUNK if body else LAST_CHUNK
        return body

    def _body(self) -> Body:
        return Body(self.request.content, self.client, self.owner.settings.body_pause_seconds)

    async def _connect(self) -> Connection:
        try:
            return await self.owner.pool.connect()
        except UpstreamError as error:
            self._note(error)
            raise error.api_error from error

    async def _try(self, connection: Connection, head: bytes, body: bytes | None) -> Relay:
        """Send the request on *connection* and see the answer to its end."""
        owner = self.owner
        relay = self.relay = Relay(
            owner.pool.loop,
            owner.clock,
            connection,
            self.client,
            self.exchange,
            owner.metrics.route(self.exchange.route),
            owner.inflight,
            owner.settings,
        )
        owner.relays.add(relay)
        connection.begin(relay)
        upload: asyncio.Task[None] | None = None
        try:
            if body is not None:
                connection.write(head + body)
                self._whole_request_sent(relay)
            else:
                connection.write(head)
                name = f"upload {self.exchange.request_id}"
                upload = owner.pool.loop.create_task(self._upload(relay, connection), name=name)
            while not relay.done:
                if not relay.paused:
                    await relay.changed()
                if relay.paused or self.client.writing_paused:
                    await self._drain(relay)
        finally:
            relay.close()
            owner.relays.discard(relay)
            owner.pool.give_back(connection, reusable=relay.reusable)
            if upload is not None:
                upload.cancel()
                await asyncio.wait({upload})
        return relay

    def _whole_request_sent(self, relay: Relay) -> None:
        relay.request_sent = True
        relay.progress = self.owner.clock()
        if not self.sent:
            self.sent = True
            self.owner.inflight.sent()

    async def _upload(self, relay: Relay, connection: Connection) -> None:
        """Stream the request's body; its failure ends the answer."""

        def moved() -> None:
            relay.progress = self.owner.clock()

        limit = self.owner.settings.max_body_bytes
        try:
            await pump_body(self._body(), connection, self.exchange, moved, chunked=self.fields.chunked, limit=limit)
        except ApiError as error:
            relay.refuse(error)
        except Exception:
            if not self.client.is_gone:
                logger.exception("the body of request %s was not sent", self.exchange.request_id)
                relay.refuse(ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True))
        else:
            self._whole_request_sent(relay)

    async def _drain(self, relay: Relay) -> None:
        """Wait for a client that does not keep up, and cut it when it does not read at all."""
        try:
            async with asyncio.timeout(self.owner.settings.write_stall_seconds):
                await self.client.drain()
        except TimeoutError:
            self.exchange.abort_phase = AbortPhase.STALL
            self.exchange.status = STATUS_CLIENT_LEFT
            relay.give_up()
            self.client.reset()
        else:
            relay.resume()

    async def _let_read(self) -> None:
        """Wait until a client whose buffer is full has read, before its next request is looked at.

        Nobody waits while an error of ours is written: a client that asks and asks and never reads would have us keep
        every answer.
        """
        try:
            async with asyncio.timeout(self.owner.settings.write_stall_seconds):
                await self.client.drain()
        except TimeoutError:
            self.owner.metrics.aborts[AbortPhase.STALL] += 1
            self.client.reset()
        except ConnectionError:
            pass  # it left; what it was sent is counted

    def _may_repeat(self, relay: Relay, connection: Connection, body: bytes | None) -> bool:
        """Whether the request can be sent again without a risk that the engine runs it twice.

        Only on a connection that had served before, whose closing crossed the request; only if no byte of an answer
        came and the whole request is still here; and, unless repeating is harmless by the method's definition
        (RFC 9110 §9.2.2), only if the engine provably did not read it to its end.
        """
        return (
            connection.uses > 1
            and isinstance(relay.error, UpstreamError)
            and relay.error.fault is UpstreamFault.CLOSED
            and not relay.responded
            and body is not None
            and (relay.unread or self.exchange.method in _IDEMPOTENT)
        )

    # ---- ends

    def _note(self, error: UpstreamError) -> None:
        self.exchange.fault = error.fault
        if self.owner.on_fault is not None:
            self.owner.on_fault(error.fault)

    def _broken(self, relay: Relay, error: UpstreamError | ApiError) -> None:
        """End an exchange that failed; raises the refusal if the client has not got a head yet."""
        if isinstance(error, UpstreamError):
            self._note(error)
            error = error.api_error
        if relay.head is None:
            raise error
        self.exchange.error_code = error.code
        relay.end_broken(error)

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error of our own; after a head was sent the only answer left is a reset."""
        exchange, client = self.exchange, self.client
        exchange.error_code = error.code
        if exchange.status:
            client.reset()
            return
        exchange.status = error.status
        if error.close or not self.request.content.is_eof():
            # Bytes of a body that nobody reads would pass for the next request.
            client.keep_alive = False
        client.write(
            error_response(
                error,
                request_id=self.request_id,
                head_request=exchange.method == "HEAD",
                connection=client.connection_field,
            )
        )

    def _left(self) -> None:
        """Note where the client was when it left."""
        exchange = self.exchange
        if exchange.abort_phase is not None:
            return
        exchange.status = STATUS_CLIENT_LEFT
        if self.relay is None:
            exchange.abort_phase = AbortPhase.CONNECT if self.sought else AbortPhase.ADMISSION
        elif self.relay.head is not None:
            exchange.abort_phase = AbortPhase.STREAM
        else:
            exchange.abort_phase = AbortPhase.WAIT if self.relay.request_sent else AbortPhase.UPLOAD
