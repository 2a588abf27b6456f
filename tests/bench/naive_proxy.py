"""The proxy everybody writes first: aiohttp's client behind aiohttp's server, a coroutine woken for every event.

`python -m tests.bench.naive_proxy PORT ENGINE_PORT`; on uvloop, without a limit on connections (aiohttp's own, 100,
would queue streams).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})
_SESSION = web.AppKey("session", ClientSession)
_ENGINE = web.AppKey("engine", str)


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)


async def _forward(request: web.Request) -> web.StreamResponse:
    session = request.app[_SESSION]
    async with session.request(
        request.method,
        request.app[_ENGINE] + request.path_qs,
        headers=_end_to_end(request.headers),
        data=request.content if request.can_read_body else None,
        allow_redirects=False,
    ) as answer:
        response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def _engine_session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(
        connector=TCPConnector(limit=0),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None),
        auto_decompress=False,
    ) as session:
        app[_SESSION] = session
        yield


async def _serve(port: int, engine_port: int) -> None:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app[_ENGINE] = f"http://127.0.0.1:{engine_port}"
    app.cleanup_ctx.append(_engine_session)
    app.router.add_route("*", "/{path:.*}", _forward)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
