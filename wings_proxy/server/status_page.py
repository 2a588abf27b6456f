"""`/` and `/status.json`: what an operator looks at first, in every state, also when the engine is down."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from aiohttp import web

from wings_proxy import __version__
from wings_proxy.lifecycle.timeline import Timeline
from wings_proxy.proxy.request_metrics import RequestMetrics
from wings_proxy.server.docs import STATIC
from wings_proxy.server.fixed_page import FixedPage
from wings_proxy.server.status import Status

_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class StatusPage:
    """The page, which is the same for everybody, and the figures it asks for.

    `engine` gives the engine's own figures by name, None where there are none to be had, `engine_version` its version;
    `settings` the effective configuration as names, values and sources, secrets hidden; `host` is the pod's name.
    """

    def __init__(
        self,
        *,
        status: Status,
        metrics: RequestMetrics,
        timeline: Timeline,
        engine: Callable[[], Awaitable[Mapping[str, float | None] | None]],
        engine_version: Callable[[], Awaitable[str | None]],
        settings: Iterable[tuple[str, str, str]],
        engine_type: str,
        model_name: str,
        host: str,
        clock: Callable[[], float],
    ) -> None:
        self._status = status
        self._metrics = metrics
        self._timeline = timeline
        self._engine = engine
        self._engine_version = engine_version
        self._settings = [{"name": name, "value": value, "source": source} for name, value, source in settings]
        self._engine_type = engine_type
        self._model_name = model_name
        self._host = host
        self._clock = clock
        self._began = clock()
        page = (STATIC / "status.html").read_text("utf-8")
        headers = {"Content-Security-Policy": content_security_policy(page), "Referrer-Policy": "no-referrer"}
        self._page = FixedPage(page, "text/html", headers)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the page and its data."""
        router.add_get("/", self._page.get)
        router.add_get("/status.json", self.data)

    async def data(self, _: web.Request) -> web.Response:
        """Everything the page shows. Counts only grow; the page makes rates and quantiles of their differences."""
        engine, engine_version = await asyncio.gather(self._engine(), self._engine_version())
        now = self._clock()
        totals = self._metrics.totals()
        body = {
            "version": __version__,
            "engine_type": self._engine_type,
            "engine_version": engine_version,
            "model_name": self._model_name,
            "host": self._host,
            "uptime_seconds": round(now - self._began, 3),
            "health": self._status.health_body(),
            "history": [
                {"state": entry.state, "reason": entry.reason, "seconds_ago": round(now - entry.at, 3)}
                for entry in self._timeline.entries
            ],
            "requests": {"in_flight": self._metrics.in_flight(), "ended": totals.ended, "aborted": totals.aborted},
            "latency": {
                "first_token": {"bounds": totals.first_token.bounds, "counts": totals.first_token.counts},
                "inter_chunk": {"bounds": totals.gap.bounds, "counts": totals.gap.counts},
            },
            "engine": engine,
            "settings": self._settings,
        }
        return web.json_response(body, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


def content_security_policy(page: str) -> str:
    """Return a policy that lets the page's own style and script run, by their hashes, and nothing else."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for tag, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; style-src {' '.join(hashes['style'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
