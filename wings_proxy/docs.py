"""`/docs` and `/openapi.json`: made once at the start, no script, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any, Final

from aiohttp import web

from wings_proxy.openapi import openapi_document

_POLICY: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE: Final = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"
    "body{max-width:48rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:.95em}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
)


def add_docs_routes(router: web.UrlDispatcher, engine_paths: Iterable[str]) -> None:
    """Add `/docs` and `/openapi.json`."""
    document = openapi_document(engine_paths)
    page, text = docs_page(document), json.dumps(document, ensure_ascii=False)

    async def docs(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", charset="utf-8", headers=_POLICY)

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type="application/json", charset="utf-8")

    async def root(_: web.Request) -> web.Response:
        raise web.HTTPFound("/docs")

    router.add_get("/", root)
    router.add_get("/docs", docs)
    router.add_get("/openapi.json", openapi)


def docs_page(document: dict[str, Any]) -> str:
    """Return the document as a page."""
    rows = {"sidecar": "", "engine": ""}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows[operation["tags"][0]] += (
                f"<tr><td>{method.upper()}<td><code>{escape(path)}</code><td>{escape(operation['summary'])}"
            )
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        'The same as data: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<h2>Sidecar</h2><table>{rows['sidecar']}</table><h2>Engine</h2><table>{rows['engine']}</table></html>"
    )
