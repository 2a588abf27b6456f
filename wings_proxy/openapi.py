"""`/openapi.json`: what this sidecar answers and forwards, as OpenAPI 3.1 data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from wings_proxy import __version__

_OWN: Final = {
    "/health": ("Everything about the engine; 200 only when it is ready", (200, 503)),
    "/readyz": ("Readiness: should this pod get requests", (200, 503)),
    "/v1/health/ready": ("The same as /readyz", (200, 503)),
    "/livez": ("Liveness of the sidecar itself; nothing of the engine", (200, 503)),
    "/v1/health/live": ("The same as /livez", (200, 503)),
    "/startupz": ("Start-up: was the launch script published", (200, 503)),
    "/livez/engine": ("Liveness of the engine, for the engine container's probe", (200, 503)),
    "/engine/status": ("The short form of /health; always 200", (200,)),
    "/metrics": ("Prometheus metrics", (200,)),
    "/openapi.json": ("This document", (200,)),
    "/docs": ("This document, to be read", (200,)),
}
_POSTED: Final = {
    "/v1/chat/completions": (
        "Chat with the model",
        {"model": "…", "messages": [{"role": "user", "content": "Hello!"}]},
    ),
    "/v1/completions": ("Complete a text", {"model": "…", "prompt": "Hello", "max_tokens": 16}),
    "/v1/embeddings": ("Embed a text", {"model": "…", "input": "Hello"}),
    "/v1/responses": ("OpenAI's responses", {"model": "…", "input": "Hello"}),
    "/v1/messages": ("Anthropic's messages", {"model": "…", "max_tokens": 16, "messages": []}),
}


def openapi_document(engine_paths: Iterable[str]) -> dict[str, Any]:
    """Return the document for a sidecar in front of an engine that has these paths."""
    paths: dict[str, Any] = {}
    for path, (summary, statuses) in _OWN.items():
        paths[path] = {
            "get": {
                "summary": summary,
                "tags": ["sidecar"],
                "responses": {str(status): {"description": _DESCRIPTION[status]} for status in statuses},
            }
        }
    for path in sorted(engine_paths):
        templated, parameters = _templated(path)
        summary, example = _POSTED.get(path, (f"Forwarded to the engine: {templated}", None))
        operation: dict[str, Any] = {
            "summary": summary,
            "tags": ["engine"],
            "responses": {
                "200": {"description": "The engine's answer, byte for byte"},
                "default": {
                    "description": "The engine's error, byte for byte, or ours",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
        }
        if parameters:
            operation["parameters"] = parameters
        method = "get" if path in _READ else "post"
        if method == "post":
            content: dict[str, Any] = {"schema": {"type": "object"}}
            if example is not None:
                content["example"] = example
            operation["requestBody"] = {"content": {"application/json": content}}
        paths[templated] = {method: operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wings-infer",
            "version": __version__,
            "description": "A sidecar in front of an LLM engine; requests are forwarded byte for byte.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


_READ: Final = frozenset({"/v1/models", "/v1/models/*", "/version", "/models", "/load", "/ping", "/v1/responses/*"})
_DESCRIPTION: Final = {200: "Yes", 503: "No; the body says why"}
_ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _templated(path: str) -> tuple[str, list[dict[str, Any]]]:
    if "*" not in path:
        return path, []
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return path.replace("*", "{id}"), [parameter]
