"""A page that does not change is sent once."""

from __future__ import annotations

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpClient

from wings_proxy.server.fixed_page import FixedPage


def app(text: str = "héllo") -> web.Application:
    application = web.Application()
    application.router.add_get("/", FixedPage(text, "text/html", {"Referrer-Policy": "no-referrer"}).get)
    return application


async def test_a_browser_that_has_the_page_is_told_so(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/")
    assert (answer.status, await answer.text()) == (200, "héllo")
    tag = answer.headers["ETag"]
    again = await client.get("/", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", tag)
    for seen in (answer, again):
        assert seen.headers["Cache-Control"] == "no-cache"
        assert seen.headers["X-Content-Type-Options"] == "nosniff"
        assert seen.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("tags", ['"other"', "", "nonsense"])
async def test_one_that_has_another_gets_it_whole(aiohttp_client: AiohttpClient, tags: str) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/", headers={"If-None-Match": tags})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    head = await client.head("/")
    assert (head.status, await head.read()) == (200, b"")


async def test_another_text_has_another_tag(aiohttp_client: AiohttpClient) -> None:
    tags = [(await (await aiohttp_client(app(text))).get("/")).headers["ETag"] for text in ("a", "b", "a")]
    assert tags[0] == tags[2] != tags[1]
