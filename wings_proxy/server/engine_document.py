"""The running engine's own OpenAPI document, for the selector of `/docs`: fetched when somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp import web

from wings_proxy.engines.base import Engine
from wings_proxy.lifecycle.state import Snapshot
from wings_proxy.proxy.api_errors import ApiError, ErrorCode
from wings_proxy.server.docs import ENGINE_DOCUMENT_PATH

# SGLang's has 295 kB.
_LARGEST: Final = 4 * 1024 * 1024
_SECONDS: Final = 5.0
_ANSWERED: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class EngineDocument:
    """Serves what a healthy engine has at its `document_path`, if it has one."""

    def __init__(self, port: int, engine: Engine, api_key: bytes | None, snapshot: Callable[[], Snapshot]) -> None:
        path = engine.document_path
        self._url = None if path is None else f"http://127.0.0.1:{port}{path}"
        self._headers = {
            "Accept-Encoding": "identity"
        }  # nothing is unpacked here, for a few kilobytes can be gigabytes
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.decode('latin-1')}"
        self._snapshot = snapshot

    def add_route(self, router: web.UrlDispatcher) -> None:
        """Add the document's path."""
        router.add_get(ENGINE_DOCUMENT_PATH, self.get)

    async def get(self, _: web.Request) -> web.Response:
        """Answer with the document as the engine wrote it. Raises `ApiError` when there is none to be had."""
        if self._url is None:
            raise ApiError(404, ErrorCode.NOT_FOUND, "This engine has no document of its own.")
        if not self._snapshot().healthy:
            raise ApiError(503, ErrorCode.ENGINE_NOT_READY, "The engine is not ready.", retry_after=5)
        try:
            body = await self._fetch(self._url)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            # ValueError: what aiohttp raises for some answers that are not HTTP.
            body = None
        if body is None:
            raise ApiError(502, ErrorCode.UPSTREAM_ERROR, "The engine gave no document.")
        return web.Response(body=body, content_type="application/json", headers=_ANSWERED)

    async def _fetch(self, url: str) -> bytes | None:
        """Return the document, or None if the answer is not one."""
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with (
            aiohttp.ClientSession(
                timeout=timeout, trust_env=False, headers=self._headers, auto_decompress=False
            ) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            packed = answer.headers.get("Content-Encoding", "identity").lower() != "identity"
            if answer.status != 200 or answer.content_type != "application/json" or packed:
                return None
            body = b""
            while piece := await answer.content.readany():
                body += piece
                if len(body) > _LARGEST:
                    return None
            return body
