"""`/openapi.json`: what this sidecar answers and forwards, as OpenAPI 3.1 data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from wings_proxy import __version__

_JSON: Final = "application/json"
_TEXT: Final[dict[str, Any]] = {"schema": {"type": "string"}}
_PAGE: Final[dict[str, Any]] = {"text/html": _TEXT}
_OBJECT: Final[dict[str, Any]] = {_JSON: {"schema": {"type": "object"}}}
_METRICS: Final[dict[str, Any]] = {"text/plain": _TEXT, "application/openmetrics-text": _TEXT}


def _reference(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _named(schema: str) -> dict[str, Any]:
    return {_JSON: {"schema": _reference(schema)}}


_OWN: Final[dict[str, tuple[str, tuple[int, ...], dict[str, Any]]]] = {
    "/health": ("Everything about the engine; 200 only when it is ready", (200, 503), _named("Health")),
    "/readyz": ("Readiness: should this pod get requests", (200, 503), _named("Probe")),
    "/v1/health/ready": ("The same as /readyz", (200, 503), _named("Probe")),
    "/livez": ("Liveness of the sidecar itself; nothing of the engine", (200, 503), _named("Probe")),
    "/v1/health/live": ("The same as /livez", (200, 503), _named("Probe")),
    "/startupz": ("Start-up: was the launch script published", (200, 503), _named("Probe")),
    "/livez/engine": ("Liveness of the engine, for the engine container's probe", (200, 503), _named("Probe")),
    "/engine/status": ("The short form of /health; always 200", (200,), _named("EngineStatus")),
    "/metrics": ("Prometheus metrics", (200,), _METRICS),
    "/": ("The status page", (200,), _PAGE),
    "/status.json": ("What the status page shows", (200,), _OBJECT),
    "/openapi.json": ("This document", (200,), _OBJECT),
    "/docs": ("This document, to be read and tried", (200,), _PAGE),
}
_KEYED: Final = frozenset({"/", "/status.json", "/openapi.json", "/docs"})
_HELLO: Final = [{"role": "user", "content": "Hello!"}]
# What is worth trying out, and with what; the model's name is put in front.
_POSTED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "/v1/chat/completions": ("Chat with the model", {"messages": _HELLO, "max_tokens": 64, "stream": True}),
    "/v1/completions": ("Complete a text", {"prompt": "Hello", "max_tokens": 16}),
    "/v1/embeddings": ("Embed a text", {"input": "Hello"}),
    "/v1/responses": ("OpenAI's responses", {"input": "Hello"}),
    "/v1/messages": ("Anthropic's messages", {"max_tokens": 16, "messages": _HELLO}),
}


def openapi_document(engine_paths: Iterable[str], *, model: str, asks_key: bool) -> dict[str, Any]:
    """Return the document for a sidecar in front of an engine that has these paths.

    `model` is the name the examples ask for, `asks_key` whether clients need an API key.
    """
    paths: dict[str, Any] = {}
    for path, (summary, statuses, answers) in _OWN.items():
        own: dict[str, Any] = {
            "summary": summary,
            "tags": ["sidecar"],
            "responses": {
                str(status): {"description": _DESCRIPTION[status], "content": answers} for status in statuses
            },
        }
        if asks_key and path in _KEYED:
            own["security"] = [{"key": []}]
            own["responses"]["401"] = {"description": "No key, or not one of ours", "content": _named("Error")}
        paths[path] = {"get": own}
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
                    "content": {_JSON: {"schema": {"anyOf": [_reference("Error"), {"type": "object"}]}}},
                },
            },
        }
        if path not in _WITHOUT_BODY:
            operation["responses"]["200"]["content"] = _ANSWER
        if asks_key:
            operation["security"] = [{"key": []}]
        if parameters:
            operation["parameters"] = parameters
        method = "get" if path in _READ else "post"
        if method == "post":
            content: dict[str, Any] = {"schema": {"type": "object"}}
            if example is not None:
                content["example"] = {"model": model, **example}
            operation["requestBody"] = {"content": {_JSON: content}}
        paths[templated] = {method: operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wings-infer",
            "version": __version__,
            "description": "A sidecar in front of an LLM engine; requests are forwarded byte for byte."
            + (" To try one out, give an API key to *Authorize* first." if asks_key else ""),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


_READ: Final = frozenset({"/v1/models", "/v1/models/*", "/version", "/models", "/load", "/ping", "/v1/responses/*"})
_WITHOUT_BODY: Final = frozenset({"/ping"})
_ANSWER: Final[dict[str, Any]] = {_JSON: {}, "text/event-stream": {}}
_DESCRIPTION: Final = {200: "Yes", 503: "No; the body says why"}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_STRING: Final = {"type": "string"}
_BOOLEAN: Final = {"type": "boolean"}
_SCHEMAS: Final[dict[str, Any]] = {
    "Error": _object(
        ("error",),
        error=_object(
            ("message",),
            message=_STRING,
            type=_STRING,
            param={"type": ["string", "null"]},
            # Ours are names, vLLM's are numbers.
            code={"type": ["string", "integer", "null"]},
        ),
    ),
    "Probe": _object(("status",), status=_STRING, state=_STRING, reason=_STRING),
    "EngineStatus": _object(("ready", "status"), ready=_BOOLEAN, status=_STRING),
    "Health": _object(
        ("status", "engine_ready", "proxy_healthy", "state", "reason", "since_seconds"),
        status=_STRING,
        engine_ready=_BOOLEAN,
        proxy_healthy=_BOOLEAN,
        state=_STRING,
        reason=_STRING,
        since_seconds={"type": "number", "minimum": 0},
        progress={"type": ["object", "null"]},
        last_failure={"type": ["object", "null"]},
        restarts={"type": "integer", "minimum": 0},
    ),
}


def _templated(path: str) -> tuple[str, list[dict[str, Any]]]:
    if "*" not in path:
        return path, []
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return path.replace("*", "{id}"), [parameter]
