"""`/metrics`: our own families, the engine's under one set of names, and its own page's as they are.

Ours are always served: what the engine does with its part costs that part and at most `WINGS_SCRAPE_TIMEOUT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from wings_proxy.telemetry.engine_families import EngineFamilies
from wings_proxy.telemetry.engine_scrape import EngineScrape
from wings_proxy.telemetry.single_flight import SingleFlight

# The escaping of names is said nothing about: no name of ours needs any.
_CLASSIC: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPEN: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What the one we write can be read as; without a version, any.
_OPEN_VERSIONS: Final = frozenset({"", "0.0.1", "1.0.0"})
# RFC 9110 §12.4.2: a weight has at most three digits after the point.
_WEIGHT: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.ASCII)

# Below this a packet holds it anyway.
_LEAST_PACKED_BYTES: Final = 1400
# Beyond this the packing would be felt by the streams; zlib lets go of the interpreter meanwhile.
_MOST_PACKED_HERE: Final = 32 * 1024
_GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS


class MetricsPage:
    """The page, made anew for whoever asks, once for those who ask at the same time."""

    def __init__(self, registry: CollectorRegistry, scrape: EngineScrape, families: EngineFamilies) -> None:
        self._registry = registry
        self._scrape = scrape
        self._families = families
        self._classic = SingleFlight(lambda: self._make(openly=False))
        self._open = SingleFlight(lambda: self._make(openly=True))

    def add_route(self, router: web.UrlDispatcher) -> None:
        """Add `/metrics`."""
        router.add_get("/metrics", self._answer)

    async def figures(self) -> Mapping[str, float | None] | None:
        """Return the engine's figures of now by name, None for one it does not give; None if there is none at all."""
        figures = self._families.show(await self._scrape.page())
        return None if figures is None else figures.by_name()

    async def _make(self, *, openly: bool) -> tuple[bytes, str]:
        page = await self._scrape.page()
        # From here on in one go, so that no other page's numbers come in between.
        self._families.show(page)
        # Two formats cannot stand on one page, and the engine's part is classic text.
        if openly and not page.text:
            return bytes(generate_openmetrics(self._registry)), _OPEN  # type: ignore[no-untyped-call]
        return generate_latest(self._registry) + page.text, _CLASSIC

    async def _answer(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        body, content_type = await (self._open if _prefers_openmetrics(accept) else self._classic)()
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if len(body) >= _LEAST_PACKED_BYTES and _takes_gzip(",".join(request.headers.getall("Accept-Encoding", ()))):
            headers["Content-Encoding"] = "gzip"
            small = len(body) <= _MOST_PACKED_HERE
            body = _packed(body) if small else await asyncio.to_thread(_packed, body)
        return web.Response(body=body, headers=headers)


def _offers(field: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Yield what a list like `Accept` offers: the thing, its parameters, its weight; one without a sound weight never.

    RFC 9110 §12.5. A comma in quotes is taken for one between offers: nothing that concerns us has one.
    """
    for offer in field.split(","):
        thing, *rest = offer.lower().split(";")
        pairs = (each.partition("=") for each in rest)
        parameters = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
        weight = parameters.pop("q", "1")
        if _WEIGHT.fullmatch(weight):
            yield thing.strip(), parameters, float(weight)


def _prefers_openmetrics(accept: str) -> bool:
    openly = classic = 0.0
    for kind, parameters, weight in _offers(accept):
        if kind == "application/openmetrics-text" and parameters.get("version", "") in _OPEN_VERSIONS:
            openly = max(openly, weight)
        elif kind == "text/plain":
            classic = max(classic, weight)
    # Whoever names both and has no preference can read either.
    return openly > 0 and openly >= classic


def _takes_gzip(accept: str) -> bool:
    weights = {coding: weight for coding, _, weight in _offers(accept)}
    return next((weights[coding] > 0 for coding in ("gzip", "x-gzip", "*") if coding in weights), False)


def _packed(body: bytes) -> bytes:
    # The lightest level: a tenth of the size for a third of the time of the usual one.
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP_FORMAT)
    return packer.compress(body) + packer.flush()
