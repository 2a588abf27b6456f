"""A client's connection: aiohttp's, with what is ours about it. The one place for its deadlines and its accounting.

`runner.Runner` makes every accepted connection a `ClientConnection`; what concerns all of them (how many there may be)
belongs to its server, which makes them and is told when they are made and lost.

aiohttp accepts, parses, and serves our own endpoints. A request for the engine goes to the forwarder straight from the
parser's hands, and past the parser if its head is known (`known_heads`): without a task, a request object and a
response object, which would cost more than all the rest. What this rests on, for aiohttp 3.14
(`web_protocol.RequestHandler`), each point held by a test:

- parsed requests lie in `_messages`; the task that takes them out (`start`) sleeps on `_waiter`, which is None while
  it serves one, and is not needed before the first one;
- the parser counts requests that were not taken (`message_consumed`), and stops at 32;
- after a handler returned, aiohttp calls `prepare(request)` and `write_eof()` on its response and reads `keep_alive`;
  with no access log it asks for nothing else;
- with `handler_cancellation` the handler is cancelled when the connection is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage

from wings_proxy.proxy.downstream import Downstream
from wings_proxy.proxy.forward import Forwarding
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.proxy.headers import RequestFields, read_fields
from wings_proxy.proxy.known_heads import HeldRequest, KnownHead, Split, split_head
from wings_proxy.proxy.parser_position import ParserPosition
from wings_proxy.proxy.upload import SMALL_BODY_BYTES
from wings_proxy.proxy.whole_body import WholeBody
from wings_proxy.server.bounded_connection import BoundedServer
from wings_proxy.server.own_answers import AnsweringConnection
from wings_proxy.server.paced_connection import NotHttp
from wings_proxy.server.responses import SentResponse

_HOLD_SECONDS: Final = 0.02
"""How long a request with a known head is held for its body: many clients write the two one after the other."""

EngineRoute = Callable[[str], str | None]
"""Tells the route a request target is counted under if it is the engine's, else None."""


class ClientConnection(AnsweringConnection):
    """Takes turns: the oldest request is answered to its end, by the forwarder or by aiohttp, before the next."""

    __slots__ = (
        "_aiohttp_waits",
        "_client",
        "_content",
        "_engine_route",
        "_forwarder",
        "_forwarding",
        "_held",
        "_hold_timer",
        "_known",
        "_linger_timer",
        "_origin_lines",
        "_position",
        "_taking",
    )

    def __init__(
        self, manager: BoundedServer, *, forwarder: Forwarder, engine_route: EngineRoute, **kwargs: Any
    ) -> None:
        super().__init__(manager, **kwargs)
        self._forwarder = forwarder
        self._engine_route = engine_route
        self._origin_lines = manager.origin_lines
        self._position = ParserPosition()
        self._known: KnownHead | None = None  # the head of the request before, if it was known
        self._held: HeldRequest | None = None
        self._hold_timer: asyncio.TimerHandle | None = None
        self._forwarding: Forwarding | None = None
        """The request that is being forwarded."""
        self._client: Downstream | None = None
        self._content: StreamReader | WholeBody | None = None
        self._aiohttp_waits: asyncio.Future[None] | None = None
        """Set while aiohttp's task waits for the forwarding's end."""
        self._taking = False
        """Whether requests are being taken out of the queue."""
        self._linger_timer: asyncio.TimerHandle | None = None
        """Set while the rest of a body nobody wants is read over."""

    # ---- told by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin as aiohttp does, but for its task, which most connections never need, and keep-alive (`listener`)."""
        BaseProtocol.connection_made(self, transport)
        assert self._manager is not None
        self._manager.connection_made(self, cast("asyncio.Transport", transport))
        self.wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Parse, unless the head is known, and begin what can be begun."""
        if self._held is not None:
            self._take_rest(self._held, data)
            return
        if self._unparsed and data:
            self.parse_slices(data)
            return
        split = None
        if self._position.between_requests:
            known = self._known
            if known is not None and (read := known.read(data)) is not None and self._take(known, *read, data):
                return
            split = split_head(data)
            if split is not None and self._take_known(split, data):
                return
        self._parse_or_slice(split, data)

    def _parse_or_slice(self, split: Split | None, data: bytes) -> None:
        begins = self._position.between_requests
        if self._position.inside_body_for(len(data)) or self.is_one_piece(data) or self.is_of_head(data, begins):
            self._parse(split, data)
        else:
            self.parse_slices(data)

    def parse_slice(self, data: bytes) -> None:
        """Parse some of what came; all the rest too if it is a body of known length, which costs the parser nothing."""
        self._parse(split_head(data) if self._position.between_requests else None, data)
        if (rest := self._unparsed) and self._position.inside_body_for(len(rest)):
            self._unparsed = b""
            self._parse(None, rest)

    def _parse(self, split: Split | None, data: bytes) -> None:
        """Have the parser take *data*; *split* is the head at its start if the parser stands between two requests."""
        # aiohttp must not wake its task: the request may not be for it.
        waiter, self._waiter = self._waiter, None
        before = self._request_count
        super().data_received(data)
        self._waiter = waiter
        parsed = self._request_count - before
        if data and self._position.known:
            self._follow(split, data, parsed)
        if not self._position.known:
            self.look_behind(data, parsed)
            if self._client is not None and self._client.offers:
                self._client.keep_alive = False
        if self._linger_timer is not None:
            self._read_over()
        elif self._messages and self._forwarding is None:
            self._next()

    def _follow(self, split: Split | None, data: bytes, parsed: int) -> None:
        """Know where the parser stands after *data*, of which it made so many requests; learn of a head it read."""
        position = self._position
        if not position.between_requests:
            position.body(len(data), began=parsed > 0)
            return
        message = self._messages[-1][0] if parsed == 1 and self._messages else None
        if split is None or message is None or isinstance(message, NotHttp):
            position.lose()
            return
        position.head(data, split.end, message)
        if message.method != "OPTIONS" and (route := self._engine_route(message.path)) is not None:
            if position.known:
                self._forwarder.known_heads.note(split, data[: split.end], message, route)
        elif position.inside_body:
            position.lose()  # aiohttp may not read the body to its end

    def end_behind_answer(self) -> None:
        """Have the answer that is being given be the last one."""
        if self._forwarding is not None and self._client is not None:
            self._client.keep_alive = False
        else:
            super().end_behind_answer()

    def leave(self) -> None:
        """Say in the answer that is being given, if its head is not out, that it is the last one: we are to stop."""
        if self._forwarding is not None and not self._forwarding.answering and self._client is not None:
            self._client.keep_alive = False

    # ---- heads that are known

    def _take_known(self, split: Split, data: bytes) -> bool:
        """Begin a request whose head is known, or hold it until it is whole; False if the parser must see it."""
        known = self._forwarder.known_heads.get(split.template)
        if known is None or (fields := known.fields(split.values)) is None:
            return False
        self._known = known
        return self._take(known, data[: split.end], fields, data)

    def _take(self, known: KnownHead, head: bytes, fields: RequestFields, data: bytes) -> bool:
        if not self._is_free:
            return False
        request = HeldRequest(head, known, fields, self._forwarder.clock())
        if request.length > SMALL_BODY_BYTES or not request.add(data[len(head) :]):
            return False
        self._request_count += 1
        self._stop_head_timer()
        if not request.missing:
            self._forward_known(request)
            return True
        self._cap.busy(self)
        self._held = request
        if self._hold_timer is None:
            # Not set back with each request: one that is given to the parser early is answered all the same.
            self._hold_timer = self._loop.call_later(_HOLD_SECONDS, self._end_hold)
        return True

    def _take_rest(self, request: HeldRequest, data: bytes) -> None:
        if not request.add(data):
            self._let_parse(request)
        elif not request.missing:
            self._forward_known(request)

    def _forward_known(self, request: HeldRequest) -> None:
        self._held = None
        known = request.known
        self._forward(known.message, request.fields, request.body, known.route, known.origin, request.began)

    def _end_hold(self) -> None:
        self._hold_timer = None
        if self._held is not None:
            self._let_parse(self._held)

    def _let_parse(self, request: HeldRequest) -> None:
        """Leave a request that did not come as expected to the parser, and to the deadlines of its body."""
        self._held = None
        self._request_count -= 1
        self._parse_or_slice(split_head(request.data), request.data)

    @property
    def _is_free(self) -> bool:
        """Whether a request may begin at once, past the parser."""
        return (
            self._forwarding is None
            and not self._messages
            and self._aiohttp_idle
            and not (self._close or self._force_close or self._reading_paused or self._buffer_paused or self._upgraded)
            and self._linger_timer is None
            and not self._cap.probes_only(self)
        )

    # ---- told by the transport

    def pause_writing(self) -> None:
        """The client's buffer is full."""
        super().pause_writing()
        if self._forwarding is not None:
            self._forwarding.pause()

    def resume_writing(self) -> None:
        """There is room again."""
        super().resume_writing()
        if self._forwarding is not None:
            self._forwarding.resume()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client left, or was let go."""
        if self._held is not None:
            self._let_parse(self._held)  # it counts as begun
        if self._hold_timer is not None:
            self._hold_timer.cancel()
        super().connection_lost(exc)
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        forwarding, self._forwarding = self._forwarding, None
        if forwarding is not None:
            # ETIMEDOUT: it acknowledged nothing for as long as a client may read nothing (`listener`).
            forwarding.client_left(vanished=isinstance(exc, TimeoutError))

    # ---- one request after the other

    @property
    def _aiohttp_idle(self) -> bool:
        return self._task_handler is None or (self._waiter is not None and not self._waiter.done())

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered or held."""
        return self._forwarding is None and self._held is None and self._aiohttp_idle

    def _next(self) -> None:
        """Give the oldest request to whom it belongs, unless one before it is being answered."""
        if self._taking:
            return  # called again by what is parsed or answered meanwhile
        self._taking = True
        try:
            while self._messages and self._forwarding is None and self._aiohttp_idle and not self._close:
                message, content = self._messages[0]
                # Neither what the parser could not read, nor an offer of another protocol: aiohttp reads nothing behind
                # it until it has declined.
                if (
                    isinstance(message, NotHttp)
                    or message.upgrade
                    or message.version[0] != 1  # the parser lets 0.9 and 2.0 pass
                    or message.method == "OPTIONS"  # a browser's question, perhaps: for the application to tell
                    or self._cap.probes_only(self)
                    or (route := self._engine_route(message.path)) is None
                ):
                    self._wake_aiohttp()
                    return
                self._messages.popleft()
                self.take_body(content)
                if self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                self._forward_parsed(message, content, route)
        finally:
            self._taking = False

    def _wake_aiohttp(self) -> None:
        if self._task_handler is None:
            self._task_handler = self._loop.create_task(self.start(), name="client connection")
        elif self._waiter is not None:
            self._waiter.set_result(None)

    def _forward_parsed(self, message: RawRequestMessage, content: StreamReader, route: str) -> None:
        owner = self._forwarder
        fields = read_fields(message.raw_headers, dropped=owner.dropped)
        self._forward(message, fields, content, route, message.headers.get("Origin"), owner.clock())

    def _forward(
        self,
        message: RawRequestMessage,
        fields: RequestFields,
        content: StreamReader | WholeBody,
        route: str,
        origin: str | None,
        began: float,
    ) -> None:
        self._cap.busy(self)
        self._client = client = Downstream(self, message)
        if (lines := self._origin_lines) is not None:
            client.extra = lines(origin)
        self._content = content
        self._forwarding = Forwarding(self._forwarder, message, fields, content, client, route, began, self._forwarded)
        self._forwarding.begin()

    def _forwarded(self) -> None:
        """Go on: the answer is out."""
        self._forwarding = None
        if self._aiohttp_waits is not None:
            if not self._aiohttp_waits.done():
                self._aiohttp_waits.set_result(None)
            return
        assert self._client is not None
        if not self._client.keep_alive or self._close or self._force_close:
            self._leave()
            return
        self.wait_for_request()
        self.settle_body()
        if self._messages:
            self._next()
        elif self._forwarding is None:
            self._cap.idle(self)

    async def forward_in_turn(self, request: web.BaseRequest, route: str) -> web.StreamResponse:
        """Forward a request that aiohttp's task came upon: it followed one of ours closely, or offers an upgrade."""
        self._aiohttp_waits = self._loop.create_future()
        try:
            self._forward_parsed(request._message, request.content, route)
            await self._aiohttp_waits
        finally:
            self._aiohttp_waits = None
        assert self._client is not None
        return SentResponse(keep_alive=self._client.keep_alive)

    # ---- ends

    def _leave(self) -> None:
        """Close once the rest of the body has come; if something may follow it, once that has been read over too."""
        assert self._content is not None
        if self._content.is_eof() or self.transport is None or self.transport.is_closing():
            self._end_turns()
        else:
            self._linger_timer = self._loop.call_later(self._lingering_time, self._end_turns)
            self._read_over()

    def _read_over(self) -> None:
        assert self._content is not None
        if not self._messages:
            self._content.read_nowait()
        if self._messages or self._content.is_eof():
            self._end_turns()

    def _end_turns(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        if self._position.known and not self._forwarder.closing:
            self._end()
        else:
            self.linger()
