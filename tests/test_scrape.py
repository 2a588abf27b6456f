"""`/metrics`: our own families, in the form the scraper asks for."""

from __future__ import annotations

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_classic
from pytest_aiohttp.plugin import AiohttpClient

from wings_proxy.scrape import add_metrics_route


def app() -> web.Application:
    registry = CollectorRegistry()
    Counter("wings_things", "Things.", ["name"], registry=registry).labels('a"b\\c\n中').inc(2)
    application = web.Application()
    add_metrics_route(application.router, registry)
    return application


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "text/html",
        "nonsense",
        "application/openmetrics-text;version=newest",
        "application/openmetrics-text; version=1.x",
        f"text/plain;version={'1' * 5000}",
        "application/openmetrics-text;version=1.0.0.<b>",
        "text/plain;version=",
    ],
)
async def test_the_classic_text_by_default(aiohttp_client: AiohttpClient, accept: str) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/metrics", headers={"Accept": accept})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    (family,) = [f for f in read_classic(await answer.text()) if f.samples[0].name == "wings_things_total"]
    assert (family.samples[0].labels, family.samples[0].value) == ({"name": 'a"b\\c\n中'}, 2.0)


async def test_openmetrics_when_asked_for(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    text = await answer.text()
    assert text.endswith("# EOF\n")
    (family,) = read_openmetrics(text)  # type: ignore[no-untyped-call]  # the library leaves this one untyped
    assert family.name == "wings_things"


async def test_head(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.head("/metrics")
    assert (answer.status, await answer.read()) == (200, b"")
