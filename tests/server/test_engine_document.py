"""The engine's own document reaches the page, and nothing but a document does."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pytest_aiohttp.plugin import AiohttpClient

from tests.ports import free_port
from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle.state import Snapshot, State
from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.server.docs import ENGINE_DOCUMENT_PATH
from wings_proxy.server.engine_document import EngineDocument

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DOCUMENT = b'{"openapi": "3.1.0"}'


async def document(_: web.Request) -> web.Response:
    return web.Response(body=DOCUMENT, content_type="application/json")


async def engine(handler: Handler) -> TestServer:
    app = web.Application()
    app.router.add_get("/openapi.json", handler)
    server = TestServer(app)
    await server.start_server()
    return server


def asked(port: int | None, engine_type: str = "vllm", state: State = State.READY) -> EngineDocument:
    assert port is not None
    snapshot = Snapshot(state, 0.0, "", "")
    return EngineDocument(port, ENGINES[engine_type], b"secret", lambda: snapshot)


async def answer_of(made: EngineDocument, aiohttp_client: AiohttpClient) -> tuple[int, bytes]:
    """Return what a browser gets; an `ApiError` as its status and code."""

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await made.get(request)
        except ApiError as error:
            return web.Response(status=error.status, text=error.code)

    app = web.Application()
    app.router.add_get(ENGINE_DOCUMENT_PATH, handler)
    client = await aiohttp_client(app)
    async with client.get(ENGINE_DOCUMENT_PATH) as answer:
        return answer.status, await answer.read()


async def test_the_document_passes_as_the_engine_wrote_it(aiohttp_client: AiohttpClient) -> None:
    seen: list[tuple[str | None, ...]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.get("Authorization"), request.headers.get("Accept-Encoding")))
        return await document(request)

    server = await engine(handler)
    assert await answer_of(asked(server.port), aiohttp_client) == (200, DOCUMENT)
    assert seen == [("Bearer secret", "identity")]
    await server.close()


async def test_an_engine_without_one_says_so(aiohttp_client: AiohttpClient) -> None:
    assert await answer_of(asked(1, "llamacpp"), aiohttp_client) == (404, ErrorCode.NOT_FOUND.encode())


async def test_nobody_is_asked_while_the_engine_is_not_ready(aiohttp_client: AiohttpClient) -> None:
    answer = await answer_of(asked(free_port(), state=State.LOADING), aiohttp_client)
    assert answer == (503, ErrorCode.ENGINE_NOT_READY.encode())


async def redirects(_: web.Request) -> web.Response:
    raise web.HTTPFound("http://169.254.169.254/")


async def html(_: web.Request) -> web.Response:
    return web.Response(text="<script>", content_type="text/html")


async def endless(_: web.Request) -> web.Response:
    return web.Response(body=b"x" * (4 * 1024 * 1024 + 1), content_type="application/json")


async def packed(_: web.Request) -> web.Response:
    fields = {"Content-Encoding": "gzip"}
    return web.Response(body=gzip.compress(DOCUMENT), content_type="application/json", headers=fields)


@pytest.mark.parametrize("handler", [redirects, html, endless, packed])
async def test_what_is_no_document_is_not_passed_on(aiohttp_client: AiohttpClient, handler: Handler) -> None:
    server = await engine(handler)
    assert await answer_of(asked(server.port), aiohttp_client) == (502, ErrorCode.UPSTREAM_ERROR.encode())
    await server.close()


async def test_an_engine_that_is_gone_is_an_answer_too(aiohttp_client: AiohttpClient) -> None:
    assert await answer_of(asked(free_port()), aiohttp_client) == (502, ErrorCode.UPSTREAM_ERROR.encode())
