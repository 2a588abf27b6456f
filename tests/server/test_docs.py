"""`/docs` and `/openapi.json`: what is documented is what there is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator
from pytest_aiohttp.plugin import AiohttpClient

from wings_proxy import __version__
from wings_proxy.engines import ENGINES
from wings_proxy.server.docs import ENGINE_DOCUMENT_PATH, STATIC, Docs
from wings_proxy.server.openapi import openapi_document
from wings_proxy.server.routes import OWN_PATHS, PAGE_FILES

PATHS = frozenset({"/v1/models", "/v1/models/*", "/v1/chat/completions", "/v1/responses/*/cancel", "/tokenize"})


def document(paths: Iterable[str] = PATHS, *, model: str = "tiny", asks_key: bool = False) -> dict[str, Any]:
    return openapi_document(paths, model=model, asks_key=asks_key)


def app(*, engine_document: bool = True) -> web.Application:
    application = web.Application()
    Docs(PATHS, model="tiny", asks_key=False, engine_document=engine_document).add_routes(application.router)
    return application


def test_every_own_path_is_documented_and_no_other() -> None:
    paths = document([])["paths"]
    assert set(paths) == OWN_PATHS
    for methods in paths.values():
        assert methods.keys() == {"get"}
        assert methods["get"]["tags"] == ["sidecar"]
    assert paths["/health"]["get"]["responses"].keys() == {"200", "503"}
    assert paths["/engine/status"]["get"]["responses"].keys() == {"200"}


def test_the_engines_paths_are_templates() -> None:
    paths = document()["paths"]
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
    example = chat["requestBody"]["content"]["application/json"]["example"]
    assert (example["model"], example["stream"], example["messages"][0]["role"]) == ("tiny", True, "user")


def test_a_key_is_asked_for_where_clients_need_one() -> None:
    paths = document(asks_key=True)["paths"]
    assert paths["/tokenize"]["post"]["security"] == [{"key": []}]
    assert paths["/docs"]["get"]["security"] == [{"key": []}]
    assert "401" in paths["/docs"]["get"]["responses"]
    assert "security" not in paths["/health"]["get"]
    assert "security" not in document()["paths"]["/tokenize"]["post"]
    assert "Authorize" in document(asks_key=True)["info"]["description"]
    assert "Authorize" not in document()["info"]["description"]


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("asks_key", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_document_is_valid_openapi(engine: str, asks_key: bool) -> None:
    whole = document(ENGINES[engine].inference_paths, asks_key=asks_key)
    assert list(OpenAPIV31SpecValidator(whole).iter_errors()) == []
    # A validator that finds nothing anywhere would agree too.
    del whole["info"]["title"]
    assert list(OpenAPIV31SpecValidator(whole).iter_errors())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_document_is_sound_for_every_engine(engine: str) -> None:
    whole = document(ENGINES[engine].inference_paths)
    assert whole["openapi"] == "3.1.0"
    assert whole["info"]["version"] == __version__
    for path, methods in whole["paths"].items():
        assert path.startswith("/")
        assert "*" not in path
        for method, operation in methods.items():
            assert method in ("get", "post")
            assert operation["summary"]
            assert operation["responses"]
            assert all(response["description"] for response in operation["responses"].values())
            names = [parameter["name"] for parameter in operation.get("parameters", [])]
            assert names == re.findall(r"\{(\w+)\}", path)
    for reference in references(whole):
        part: Any = whole
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part["type"] == "object"
    assert json.loads(json.dumps(whole)) == whole


async def test_the_document_is_served(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert await answer.json() == document()
    head = await client.head("/openapi.json")
    assert (head.status, await head.read()) == (200, b"")


async def test_the_page_loads_its_own_files_and_no_others(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(app())
    answer = await client.get("/docs?url=https://evil.example/spec.json&configUrl=//evil.example")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= {*policy}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    text = await answer.text()
    assert "evil" not in text
    loaded = set(re.findall(r'(?:src|href)="([^"]*)"', text))
    # Relative: an ingress may serve the page below a prefix.
    assert loaded == {path.removeprefix("/") for path in PAGE_FILES - {ENGINE_DOCUMENT_PATH}} | {"openapi.json"}
    for path in loaded:
        file = await client.get(f"/{path}")
        assert file.status == 200, path
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        assert await file.read()


@pytest.mark.parametrize("there_is_one", [True, False])
async def test_the_engines_own_document_is_offered_where_it_has_one(
    aiohttp_client: AiohttpClient, there_is_one: bool
) -> None:
    client = await aiohttp_client(app(engine_document=there_is_one))
    text = await (await client.get("/docs")).text()
    found = re.search(r'id="documents">(.*?)</script>', text)
    assert found is not None
    urls = [offered["url"] for offered in json.loads(found[1])]
    assert urls == ["openapi.json", ENGINE_DOCUMENT_PATH.removeprefix("/")][: 1 + there_is_one]


def test_swagger_ui_is_as_it_was_published() -> None:
    folder = STATIC / "swagger-ui"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {file.name for file in folder.iterdir()}
    assert {"LICENSE", "NOTICE"} <= set(sums)
    assert set(sums) == files - {"SHA256SUMS", "README.md"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
