"""`/metrics`: our own families, in the format the scraper asks for."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# The client library compares versions as tuples of numbers, and writes the one it was asked for into Content-Type.
_VERSION: Final = re.compile(r"[;,]\s*version=([^;,]*)")
_NUMBERS: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,3}\s*")


def add_metrics_route(router: web.UrlDispatcher, registry: CollectorRegistry) -> None:
    """Add `/metrics`; the classic text format by default, OpenMetrics when asked for."""

    async def metrics(request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        if not all(_NUMBERS.fullmatch(version) for version in _VERSION.findall(accept)):
            accept = ""
        encode, content_type = choose_encoder(accept)
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    router.add_get("/metrics", metrics)
