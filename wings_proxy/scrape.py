"""`/metrics`: our own families, in the format the scraper asks for."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def add_metrics_route(router: web.UrlDispatcher, registry: CollectorRegistry) -> None:
    """Add `/metrics`; the classic text format by default, OpenMetrics when asked for."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    router.add_get("/metrics", metrics)
