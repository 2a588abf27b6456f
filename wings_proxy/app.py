"""The HTTP surface: our own endpoints, and in front of them the fork to the engine. Wiring only."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.docs import add_docs_routes
from wings_proxy.engines.base import Engine
from wings_proxy.forward import Forwarder
from wings_proxy.routes import Audience, Routes
from wings_proxy.scrape import add_metrics_route
from wings_proxy.status import Status

_log = logging.getLogger(__name__)

_SERVER: Final = "wings-infer"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def make_app(*, engine: Engine, status: Status, registry: CollectorRegistry) -> web.Application:
    """Return the application with our own endpoints."""
    app = web.Application(middlewares=[_errors_in_our_shape])
    app.on_response_prepare.append(_name_the_server)
    status.add_routes(app.router)
    add_metrics_route(app.router, registry)
    add_docs_routes(app.router, engine.inference_paths)
    return app


async def _name_the_server(_: web.Request, response: web.StreamResponse) -> None:
    # aiohttp would tell the world its own version and Python's.
    response.headers["Server"] = _SERVER


@web.middleware
async def _errors_in_our_shape(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        response = error_response(ApiError(405, ErrorCode.METHOD_NOT_ALLOWED, "This path is read with GET."))
        response.headers["Allow"] = error.headers["Allow"]
        return response


def make_dispatcher(routes: Routes, forwarder: Forwarder, own: Handler) -> Handler:
    """Return the server's handler: the engine's paths to the forwarder, ours to the application.

    Before the application, not in it: its router decodes paths, and costs every forwarded request 20 µs.
    """

    async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
        route = routes.find(request.raw_path)
        if route.audience is Audience.ENGINE:
            return await forwarder.forward(request, route.template)
        if route.audience is Audience.SIDECAR:
            return await own(request)
        return error_response(ApiError(404, ErrorCode.NOT_FOUND, f"Not found: {route.reason}."))

    return dispatch


class Runner(web.AppRunner):
    """Runs the application on connections that answer what is not HTTP in our shape."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _ClientConnection(self, loop=self._loop, **self._kwargs)


class _ClientConnection(web.RequestHandler):
    """Answers and logs what cannot be read as HTTP without a byte of it.

    aiohttp's own way quotes the offending line, which may hold a key or a prompt, to the client and, with a traceback,
    to the log: strangers could fill it with what they like. It also names its version and Python's.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that is not HTTP (400), or that a handler of ours failed on."""
        if status != 400:
            super().handle_error(request, status, exc, message)  # logs
            return error_response(ApiError(500, ErrorCode.INTERNAL_ERROR, "the proxy failed", close=True))
        _log.debug("not HTTP: %s", type(exc).__name__)
        refusal = "the request is not HTTP/1.1, or its head is too long or ambiguous"
        return error_response(ApiError(400, ErrorCode.INVALID_REQUEST, refusal, close=True))


def error_response(error: ApiError) -> web.Response:
    """Return an error of ours as an aiohttp response."""
    headers = {name.decode("ascii"): value.decode("ascii") for name, value in error.headers}
    response = web.Response(status=error.status, body=error.body, headers={**headers, "Server": _SERVER})
    if error.close:
        response.force_close()
    return response
