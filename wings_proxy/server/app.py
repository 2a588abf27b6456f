"""The HTTP surface: our own endpoints, and in front of them the fork to the engine. Wiring only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.server.access import Access
from wings_proxy.server.client_connection import ClientConnection, EngineRoute
from wings_proxy.server.docs import Docs
from wings_proxy.server.engine_document import EngineDocument
from wings_proxy.server.responses import SERVER, error_response
from wings_proxy.server.routes import Audience, Routes
from wings_proxy.server.status import Status
from wings_proxy.server.status_page import StatusPage
from wings_proxy.telemetry.scrape import MetricsPage

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def make_app(
    *,
    docs: Docs,
    status: Status,
    page: StatusPage,
    engine_document: EngineDocument,
    metrics: MetricsPage,
    access: Access | None = None,
) -> web.Application:
    """Return the application with our own endpoints."""
    app = web.Application(middlewares=[_errors_in_our_shape])
    app.on_response_prepare.append(_name_the_server)
    if access is not None:
        app.on_response_prepare.append(_name_allowed_origins(access))
    status.add_routes(app.router)
    metrics.add_route(app.router)
    page.add_routes(app.router)
    docs.add_routes(app.router)
    engine_document.add_route(app.router)
    return app


async def _name_the_server(_: web.Request, response: web.StreamResponse) -> None:
    # aiohttp would tell the world its own version and Python's.
    response.headers["Server"] = SERVER


def _name_allowed_origins(access: Access) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def name(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(access.allowed(request.headers.get("Origin")))

    return name


@web.middleware
async def _errors_in_our_shape(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allow = error.headers["Allow"].encode()
        return error_response(ApiError(405, ErrorCode.METHOD_NOT_ALLOWED, "This path is read with GET.", allow=allow))
    except ApiError as error:
        return error_response(error)


def make_engine_route(routes: Routes) -> EngineRoute:
    """Return what tells the engine's targets."""

    def engine_route(target: str) -> str | None:
        route = routes.find(target)
        return route.template if route.audience is Audience.ENGINE else None

    return engine_route


def make_dispatcher(routes: Routes, own: Handler, access: Access, on_refusal: Callable[[ErrorCode], None]) -> Handler:
    """Return the handler of what aiohttp's task gets: our own endpoints to the application."""
    expectation_failed = ApiError(417, ErrorCode.EXPECTATION_FAILED, "the only expectation known is 100-continue")

    def refuse(request: web.BaseRequest, error: ApiError) -> web.StreamResponse:
        on_refusal(error.code)
        response = error_response(error)
        response.headers.update(access.allowed(request.headers.get("Origin")))
        return response

    async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
        route = routes.find(request.raw_path)
        if (fields := access.preflight(request.method, request.headers)) is not None:
            return web.Response(status=204, headers={**fields, "Server": SERVER})
        if route.audience is Audience.SIDECAR:
            if (refusal := access.refusal(route.template, request.raw_headers)) is not None:
                return refuse(request, refusal)
            if request.headers.get("Expect", "100-continue").lower() != "100-continue":
                return refuse(request, expectation_failed)
            return await own(request)
        if route.audience is Audience.ENGINE:
            assert isinstance(request.protocol, ClientConnection)
            return await request.protocol.forward_in_turn(request, route.template)
        return refuse(request, ApiError(404, ErrorCode.NOT_FOUND, f"Not found: {route.reason}."))

    return dispatch
