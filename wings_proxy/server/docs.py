"""`/docs`, `/openapi.json`: Swagger UI from the files that come with the package, and what it shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from aiohttp import web

from wings_proxy.server.fixed_page import FixedPage
from wings_proxy.server.openapi import openapi_document

STATIC: Final = Path(__file__).with_name("static")
_FILES: Final = {
    "/docs/start.js": "start.js",
    "/docs/swagger-ui.css": "swagger-ui/swagger-ui.css",
    "/docs/swagger-ui-bundle.js": "swagger-ui/swagger-ui-bundle.js",
    "/docs/swagger-ui-standalone-preset.js": "swagger-ui/swagger-ui-standalone-preset.js",
    "/docs/favicon.png": "swagger-ui/favicon-32x32.png",
}
ENGINE_DOCUMENT_PATH: Final = "/docs/engine.json"

_HEADERS: Final = {
    # Swagger UI writes style attributes and draws its pictures from data: addresses; scripts are its own files only.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Relative addresses: an ingress may serve us below a prefix.
_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>wings-infer API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<main id="swagger-ui">
<noscript>This page needs JavaScript. The document itself: <a href="openapi.json">openapi.json</a></noscript>
</main>
<script type="application/json" id="documents">%s</script>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/swagger-ui-standalone-preset.js"></script>
<script src="docs/start.js"></script>
</html>
"""


class Docs:
    """The page, its files, and our document; made once at the start."""

    def __init__(self, engine_paths: Iterable[str], *, model: str, asks_key: bool, engine_document: bool) -> None:
        """Take the model the examples ask for, whether clients need a key, and whether the engine has a document."""
        document = openapi_document(engine_paths, model=model, asks_key=asks_key)
        self._document = FixedPage(json.dumps(document, ensure_ascii=False), "application/json", {})
        offered = [{"name": "wings-infer", "url": "openapi.json"}]
        if engine_document:
            offered.append({"name": "the running engine", "url": ENGINE_DOCUMENT_PATH.removeprefix("/")})
        self._page = FixedPage(_PAGE % json.dumps(offered), "text/html", _HEADERS)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the page, what it loads, and `/openapi.json`."""
        router.add_get("/docs", self._page.get)
        router.add_get("/openapi.json", self._document.get)
        for path in _FILES:
            router.add_get(path, self.file)

    async def file(self, request: web.Request) -> web.FileResponse:
        """A file of the page's."""
        return web.FileResponse(STATIC / _FILES[request.path], headers=_HEADERS)
