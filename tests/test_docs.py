"""`/docs` and `/openapi.json`: what is documented is what there is."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpClient

from wings_proxy import __version__
from wings_proxy.docs import add_docs_routes, docs_page
from wings_proxy.engines import ENGINES
from wings_proxy.openapi import openapi_document
from wings_proxy.routes import OWN_PATHS

PATHS = frozenset({"/v1/models", "/v1/models/*", "/v1/chat/completions", "/v1/responses/*/cancel", "/tokenize"})


def app() -> web.Application:
    application = web.Application()
    add_docs_routes(application.router, PATHS)
    return application


def test_every_own_path_is_documented_and_no_other() -> None:
    document = openapi_document([])
    assert set(document["paths"]) == OWN_PATHS - {"/"}
    for methods in document["paths"].values():
        assert methods.keys() == {"get"}
        assert methods["get"]["tags"] == ["sidecar"]
    assert document["paths"]["/health"]["get"]["responses"].keys() == {"200", "503"}
    assert document["paths"]["/engine/status"]["get"]["responses"].keys() == {"200"}


def test_the_engines_paths_are_templates() -> None:
    paths = openapi_document(PATHS)["paths"]
    assert paths["/v1/models"].keys() == {"get"}
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    assert paths["/v1/models/{id}"]["get"]["parameters"] == [parameter]
    assert paths["/v1/responses/{id}/cancel"]["post"]["parameters"] == [parameter]
    assert "parameters" not in paths["/tokenize"]["post"]
    assert paths["/tokenize"]["post"]["summary"] == "Forwarded to the engine: /tokenize"
    assert paths["/tokenize"]["post"]["requestBody"] == {
        "content": {"application/json": {"schema": {"type": "object"}}}
    }
    chat = paths["/v1/chat/completions"]["post"]
    assert chat["summary"] == "Chat with the model"
    assert chat["requestBody"]["content"]["application/json"]["example"]["messages"][0]["role"] == "user"


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_document_is_sound_for_every_engine(engine: str) -> None:
    document = openapi_document(ENGINES[engine].inference_paths)
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == __version__
    for path, methods in document["paths"].items():
        assert path.startswith("/")
        assert "*" not in path
        for method, operation in methods.items():
            assert method in ("get", "post")
            assert operation["summary"]
            assert operation["responses"]
            assert all(response["description"] for response in operation["responses"].values())
            names = [parameter["name"] for parameter in operation.get("parameters", [])]
            assert names == re.findall(r"\{(\w+)\}", path)
    for reference in references(document):
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part["type"] == "object"
    assert json.loads(json.dumps(document)) == document


async def test_the_document_is_served(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert await answer.json() == openapi_document(PATHS)
    head = await client.head("/openapi.json")
    assert (head.status, await head.read()) == (200, b"")


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


async def test_the_page_shows_every_path_and_loads_nothing(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/docs?url=https://evil.example/spec.json&configUrl=//evil.example")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "base-uri 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    text = await answer.text()
    assert "evil" not in text
    page = Tags(text)
    for path in openapi_document(PATHS)["paths"]:
        assert f"\n{path}\n" in page.text
    loading = {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    assert not loading & {tag for tag, _ in page.tags}
    assert {attributes["href"] for _, attributes in page.tags if "href" in attributes} == {"/openapi.json"}
    assert not any(name.startswith("on") or name == "src" for _, attributes in page.tags for name in attributes)


def test_whatever_is_in_the_document_is_text_on_the_page() -> None:
    document = openapi_document(["/<script>alert(1)</script>"])
    document["info"]["title"] = document["info"]["description"] = '<img src=x onerror="alert(1)">'
    page = Tags(docs_page(document))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text


async def test_the_root_leads_to_the_page(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/docs")
