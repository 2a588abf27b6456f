"""One request to the engine and its answer back: admission, sending, waiting, the honest end."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import hdrs, web

from wings_proxy.access_log import log_exchange
from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.api_keys import Authorizer
from wings_proxy.downstream import Downstream, SentResponse
from wings_proxy.exchange import AbortPhase, Exchange, UpstreamFault
from wings_proxy.headers import (
    CREDENTIALS,
    error_response,
    request_head,
    request_id,
)
from wings_proxy.http1 import LAST_CHUNK, connection_options, encode_chunk
from wings_proxy.inflight import Inflight
from wings_proxy.metrics import RequestMetrics
from wings_proxy.relay import Relay, upstream_api_error
from wings_proxy.upload import Body, pump_body, too_large
from wings_proxy.upstream import LOOPBACK, Connection, Pool, UpstreamError

logger = logging.getLogger(__name__)

SMALL_BODY_BYTES = 64 * 1024
"""A body announced as no longer is read before the engine is asked: one write, and it can be sent again."""

_TARGET = re.compile(r"/[^\x00-\x20\x7f]*")
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})  # RFC 9110 §9.2.2
_UPGRADES_REFUSED = frozenset({"websocket", "tcp"})
_NO_NAMES: frozenset[bytes] = frozenset()

STATUS_CLIENT_LEFT = 499
"""nginx's status for a client that left before the answer's end; only counted, never sent."""


class Gate(Protocol):
    """Whether the engine's present run takes requests."""

    @property
    def open(self) -> bool:
        """True if a request may go on at once."""

    async def admit(self) -> ApiError | None:
        """Wait until it is known whether a request may go on; return the refusal, or None."""


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
    body_pause_seconds: float = 60.0
    """How long a client may pause inside its request's body."""
    max_body_bytes: int = 64 * 1024 * 1024
    max_inflight: int | None = None
    pool_idle_seconds: float = 4.0
    """Less than uvicorn's keep-alive of 5 s."""
    engine_authorization: bytes | None = None
    """Value of `Authorization` sent to the engine, for example `Bearer …`."""


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

        Without *authorize* every request passes, its credentials untouched. *on_fault* hears of each fault
        of the engine at once; it must not block.
        """
        self.settings = settings
        self.pool = pool
        self.loop = pool.loop
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
        self.without = _NO_NAMES if keeps_credentials else CREDENTIALS
        self.relays: set[Relay] = set()
        self.closing = False
        """Set while draining: answers then end their client's connection."""

    async def forward(self, request: web.BaseRequest, route: str) -> web.StreamResponse:
        """Answer *request*; *route* is the template it is counted under.

        Returns a response that was already sent. Raises nothing but CancelledError, when the client has left.
        """
        return await _Forwarding(self, request, route).run()

    def cut_all(self) -> None:
        """End every answer now, each in the honest way of its kind: the drain deadline has passed."""
        for relay in tuple(self.relays):
            relay.fail(UpstreamFault.CUT, "this server is shutting down")


class _Forwarding:
    """The life of one request."""

    __slots__ = ("client", "exchange", "owner", "relay", "request", "request_id", "sent", "sought")

    def __init__(self, owner: Forwarder, request: web.BaseRequest, route: str) -> None:
        self.owner = owner
        self.request = request
        given = request.headers.get("X-Request-Id")
        self.request_id = request_id(None if given is None else given.encode("utf-8", "surrogateescape"))
        self.exchange = Exchange(route, request.method, self.request_id.decode(), owner.clock())
        self.client = Downstream(request)
        self.relay: Relay | None = None
        self.sought = False
        """Whether the engine was sought: a connection taken or opened."""
        self.sent = False
        """Whether the engine was sent the whole request."""

    async def run(self) -> web.StreamResponse:
        """Forward the request and account for it, however it ends."""
        exchange = self.exchange
        try:
            await self._admit()
        except ApiError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            self._left()
            raise
        except Exception:
            # aiohttp's reader fails in several ways when its connection is lost; the cancellation is on its
            # way.
            if self.client.is_gone:
                self._left()
            else:
                logger.exception("request %s failed in the proxy", exchange.request_id)
                self._refuse(ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True))
        finally:
            ended = self.owner.clock()
            self.owner.metrics.count(exchange, ended)
            log_exchange(exchange, ended)
        return SentResponse(exchange.status, exchange.sent_bytes, keep_alive=self.client.keep_alive)

    # ---- admission

    async def _admit(self) -> None:
        owner = self.owner
        if owner.closing:
            self.client.keep_alive = False
        self._check()
        owner.inflight.begin()
        try:
            if not owner.gate.open and (refusal := await owner.gate.admit()) is not None:
                raise refusal
            await self._forward()
        finally:
            owner.inflight.end(sent=self.sent)

    def _check(self) -> None:
        """Raise the refusal of a request that must not reach the engine, whatever its state."""
        owner, request = self.owner, self.request
        headers = request.headers
        if owner.authorize is not None and (refusal := owner.authorize(request.raw_headers)) is not None:
            raise refusal
        if not _TARGET.fullmatch(request.raw_path):
            raise ApiError(400, ErrorCode.INVALID_REQUEST, "the request target is not a plain path")
        if hdrs.UPGRADE in headers and headers[hdrs.UPGRADE].lower() in _UPGRADES_REFUSED:
            # Other offers, h2c for one, may be ignored (RFC 9110 §7.8), and must: Java's client makes one
            # each time.
            raise ApiError(501, ErrorCode.UPGRADE_NOT_SUPPORTED, "upgrades are not supported", close=True)
        if hdrs.EXPECT in headers and headers[hdrs.EXPECT].lower() != "100-continue":
            raise ApiError(417, ErrorCode.EXPECTATION_FAILED, "the only expectation known is 100-continue")
        if headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
            raise ApiError(400, ErrorCode.INVALID_REQUEST, "the only transfer coding known is chunked", close=True)
        settings = owner.settings
        if (request.content_length or 0) > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        if settings.max_inflight is not None and owner.inflight.count >= settings.max_inflight:
            raise ApiError(429, ErrorCode.OVERLOADED, "too many requests in flight", retry_after=1)

    # ---- the engine

    async def _forward(self) -> None:
        owner, request = self.owner, self.request
        chunked = hdrs.TRANSFER_ENCODING in request.headers
        body = await self._whole_body(chunked=chunked)
        head = request_head(
            request.method,
            request.raw_path,
            request.raw_headers,
            host=owner.host,
            request_id=self.request_id,
            chunked=chunked,
            connection=_options(request),
            without=owner.without,
            authorization=owner.settings.engine_authorization,
        )
        self.sought = True
        connection = owner.pool.take() or await self._connect()
        relay = await self._try(connection, head, body, chunked=chunked)
        if relay.error is not None and self._may_repeat(relay, connection, body):
            self.exchange.retried = 1
            relay = await self._try(await self._connect(), head, body, chunked=chunked)
        if relay.error is not None:
            self._broken(relay, relay.error)

    async def _whole_body(self, *, chunked: bool) -> bytes | None:
        """Return the request's body if it is here or small, None if it is to be streamed."""
        request, settings = self.request, self.owner.settings
        content = request.content
        if content.is_eof():
            body = content.read_nowait()
        else:
            if hdrs.EXPECT in request.headers and not self.client.http10:
                self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if chunked or (request.content_length or 0) > SMALL_BODY_BYTES:
                return None
            body = await self._body().read_all()
        if len(body) > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        self.exchange.received_bytes = len(body)
        return encode_chunk(body) + LAST_CHUNK if chunked and body else LAST_CHUNK if chunked else body

    def _body(self) -> Body:
        return Body(self.request.content, self.client, self.owner.settings.body_pause_seconds)

    async def _connect(self) -> Connection:
        try:
            return await self.owner.pool.connect()
        except UpstreamError as error:
            self._note(error)
            raise upstream_api_error(error) from error

    async def _try(self, connection: Connection, head: bytes, body: bytes | None, *, chunked: bool) -> Relay:
        """Send the request on *connection* and see the answer to its end."""
        owner = self.owner
        relay = self.relay = Relay(
            owner.loop,
            owner.clock,
            connection,
            self.client,
            self.exchange,
            owner.metrics.route(self.exchange.route),
            owner.inflight,
            request_id=self.request_id,
            head_request=self.request.method == "HEAD",
            first_byte_seconds=owner.settings.first_byte_timeout_seconds,
            idle_seconds=owner.settings.idle_timeout_seconds,
        )
        owner.relays.add(relay)
        connection.begin(relay)
        upload: asyncio.Task[None] | None = None
        try:
            if body is not None:
                connection.write(head + body if body else head)
                self._whole_request_sent(relay)
            else:
                connection.write(head)
                upload = owner.loop.create_task(
                    self._upload(relay, connection, chunked=chunked),
                    name=f"upload {self.exchange.request_id}",
                )
            await self._until_done(relay)
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

    async def _upload(self, relay: Relay, connection: Connection, *, chunked: bool) -> None:
        """Stream the request's body; its failure ends the answer."""

        def moved() -> None:
            relay.progress = self.owner.clock()

        try:
            await pump_body(
                self._body(),
                connection,
                self.exchange,
                moved,
                chunked=chunked,
                limit=self.owner.settings.max_body_bytes,
            )
        except ApiError as error:
            relay.refuse(error)
        except Exception:
            if not self.client.is_gone:
                logger.exception("the body of request %s was not sent", self.exchange.request_id)
                relay.refuse(ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True))
        else:
            self._whole_request_sent(relay)

    async def _until_done(self, relay: Relay) -> None:
        """Wait for the answer's end, and for a client that does not keep up with it."""
        while True:
            await relay.changed()
            if relay.paused or (relay.done and self.client.writing_paused):
                try:
                    async with asyncio.timeout(self.owner.settings.write_stall_seconds):
                        await self.client.drain()
                except TimeoutError:
                    self.exchange.abort_phase = AbortPhase.STALL
                    self.exchange.status = STATUS_CLIENT_LEFT
                    self.client.reset()
                    return
            if relay.done:
                return
            relay.resume()

    def _may_repeat(self, relay: Relay, connection: Connection, body: bytes | None) -> bool:
        """Whether the request can be sent again without a risk that the engine runs it twice.

        Only on a connection that had served before, whose closing crossed the request; only if no byte of an
        answer came and the whole request is still here; and, unless repeating is harmless by the method's
        definition (RFC 9110 §9.2.2), only if the engine provably did not read it to its end.
        """
        return (
            connection.uses > 1
            and isinstance(relay.error, UpstreamError)
            and relay.error.fault is UpstreamFault.CLOSED
            and not relay.responded
            and body is not None
            and (relay.unread or self.request.method in _IDEMPOTENT)
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
            error = upstream_api_error(error)
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
        head_request = self.request.method == "HEAD"
        client.write(
            error_response(
                error,
                request_id=self.request_id,
                head_request=head_request,
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


def _options(request: web.BaseRequest) -> frozenset[bytes]:
    """Return the options of the client's `Connection` fields, lower case."""
    values = request.headers.getall(hdrs.CONNECTION, ())
    return connection_options(",".join(values).encode("utf-8", "surrogateescape")) if values else _NO_NAMES
