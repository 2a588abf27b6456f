"""What makes client connections: aiohttp's runner and server, with ours in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from wings_proxy.proxy.api_errors import ErrorCode
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.server.bounded_connection import BoundedServer, Bounds, OriginLines
from wings_proxy.server.client_connection import ClientConnection, EngineRoute
from wings_proxy.server.connection_cap import ConnectionCap
from wings_proxy.server.responses import error_response

_UNTAKEN_BYTES: Final = 64 * 1024
"""Once twice this has come of a body that nobody takes for now, no more of it is read. aiohttp's own 256 KiB are three
quarters of a megabyte for each of two hundred uploads that wait."""


class _Server(BoundedServer):
    def __init__(self, *args: Any, forwarder: Forwarder, engine_route: EngineRoute, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forwarder = forwarder
        self._engine_route = engine_route

    def __call__(self) -> web.RequestHandler:
        return ClientConnection(
            self, forwarder=self._forwarder, engine_route=self._engine_route, loop=self._loop, **self._kwargs
        )


class Runner(web.AppRunner):
    """Runs an application, and the forwarder in front of it: what *engine_route* knows is forwarded."""

    def __init__(
        self,
        app: web.Application,
        forwarder: Forwarder,
        engine_route: EngineRoute,
        *,
        bounds: Bounds | None = None,
        most_connections: int = 1000,
        on_refusal: Callable[[ErrorCode], None] = lambda _: None,
        origin_lines: OriginLines | None = None,
        patience: Callable[[], float] = float,
        **kwargs: Any,
    ) -> None:
        """Take, beside aiohttp's own, the bounds of connections, and who hears of requests that nobody handles.

        *origin_lines* tells what the head of a forwarded answer says to a web page of an `Origin`; *patience*, how many
        seconds clients have to take what they were sent, once it ends.
        """
        super().__init__(app, read_bufsize=_UNTAKEN_BYTES, **kwargs)
        self._forwarder = forwarder
        self._engine_route = engine_route
        self._bounds = {
            "bounds": bounds or Bounds(),
            "most": most_connections,
            "on_refusal": on_refusal,
            "origin_lines": origin_lines,
            "patience": patience,
        }

    @property
    def connections(self) -> ConnectionCap[web.RequestHandler]:
        """The connections there are; only after `setup`."""
        assert isinstance(self._server, BoundedServer)
        return self._server.cap

    def leave(self) -> None:
        """Have every answer that has not begun be its connection's last one: we are to stop."""
        for connection in self._server.connections if self._server is not None else ():
            assert isinstance(connection, ClientConnection)
            connection.leave()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            forwarder=self._forwarder,
            engine_route=self._engine_route,
            answer=error_response,
            pace=self._forwarder.upload_pace,
            **self._bounds,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
