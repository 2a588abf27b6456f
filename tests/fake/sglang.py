"""SGLang 0.5.23: answers, headers and errors as captured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping

from tests.fake.dialect import (
    DONE,
    Answer,
    Body,
    Dialect,
    Generation,
    compact,
    count_tokens,
    header_block,
    http_date,
    is_chinese,
    prompt_text,
    sse,
    wants_close,
)
from tests.fake.wire import Request

_SOURCE = '  File "/sglang/srt/entrypoints/http_server.py", line 1870, in openai_v1_chat_completions'

_METHODS: Mapping[str, tuple[str, ...]] = {
    "/": ("GET",),
    "/health": ("GET",),
    "/health_generate": ("GET",),
    "/ready": ("GET",),
    "/ping": ("GET",),
    "/model_info": ("GET",),
    "/get_model_info": ("GET",),
    "/server_info": ("GET",),
    "/get_server_info": ("GET",),
    "/metrics": ("GET", "HEAD"),
    "/openapi.json": ("GET", "HEAD"),
    "/v1/models": ("GET",),
    "/v1/chat/completions": ("POST",),
    "/v1/completions": ("POST",),
    "/v1/embeddings": ("POST",),
    "/generate": ("POST",),
    "/tokenize": ("POST",),
}
_OPEN = ("/health", "/ready", "/metrics")


class Sglang(Dialect):
    """The HTTP server of SGLang."""

    health_paths = frozenset({"/health", "/health_generate"})

    def head(self, answer: Answer, request: Request) -> bytes:
        headers = [("date", http_date()), ("server", "uvicorn"), *answer.early]
        if answer.length and not answer.chunked:
            headers.append(("content-length", str(len(answer.body))))
        if answer.content_type is not None:
            headers.append(("content-type", answer.content_type))
        headers += [*answer.headers, ("vary", "Origin")]
        if wants_close(request):
            headers.append(("connection", "close"))
        if answer.chunked:
            headers.append(("transfer-encoding", "chunked"))
        return header_block(answer.status, headers)

    def stream_head(self, request: Request) -> bytes:
        return self.head(Answer(200, content_type="text/event-stream; charset=utf-8", chunked=True), request)

    def health(self, status: int) -> Answer:
        return Answer(status, content_type=None)

    def loading(self) -> Answer:
        return Answer(503, content_type=None)

    def error(self, status: int, message: str) -> Answer:
        return _error(status, message, "InternalServerError" if status >= 500 else "BadRequestError")

    def answer(self, request: Request) -> Answer | Generation:
        path = request.path
        if not path.startswith(_OPEN) and request.method != "OPTIONS" and not self.has_key(request):
            return Answer(401, compact({"error": "Unauthorized"}))
        if path not in _METHODS:
            return Answer(404, compact({"detail": "Not Found"}))
        if request.method not in _METHODS[path]:
            detail = compact({"detail": "Method Not Allowed"})
            return Answer(405, detail, early=(("allow", ", ".join(_METHODS[path])),))
        return self._post(request) if request.method == "POST" else self._get(path)

    def _get(self, path: str) -> Answer:
        if path in {"/ping", "/ready", "/health_generate"}:
            return self.health(200)
        name = self.names[0]
        model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "sglang", "root": name}
        info = {"model_path": self.settings.model, "served_model_name": name, "is_generation": True}
        documents: Mapping[str, object] = {
            "/": "SGLang is running",
            "/model_info": info,
            "/get_model_info": info,
            "/server_info": info,
            "/get_server_info": info,
            "/openapi.json": {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}, "paths": {}},
            "/v1/models": {
                "object": "list",
                "data": [{**model, "parent": None, "max_model_len": self.settings.max_model_len}],
            },
        }
        return Answer(200, compact(documents[path]))

    def _post(self, request: Request) -> Answer | Generation:
        if not request.body:
            return _invalid(request.path, "missing", ("body",), "Field required", None)
        if (request.header("content-type") or "").partition(";")[0].strip().lower() != "application/json":
            message = "Unsupported Media Type: Only 'application/json' is allowed"
            detail = {"loc": ["header", "content-type"], "msg": message, "type": "value_error"}
            return _error(400, f"1 validation error:\n  {detail} [{detail}]", "Bad Request")
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError):
            error = {"error": "unexpected character, expected a string key"}
            return _invalid(request.path, "json_invalid", ("body", 1), "JSON decode error", {}, ctx=error)
        if request.path == "/v1/chat/completions" and "messages" not in body:
            return _invalid(request.path, "missing", ("body", "messages"), "Field required", body)
        wanted = body.get("max_tokens", (body.get("sampling_params") or {}).get("max_new_tokens"))
        if isinstance(wanted, str) and not wanted.isdigit():
            message = "Input should be a valid integer, unable to parse string as an integer"
            return _invalid(request.path, "int_parsing", ("body", "max_tokens"), message, wanted)
        text = prompt_text(body)
        count = count_tokens(text)
        limit = self.settings.max_model_len
        if count > limit:
            message = f"The input ({count} tokens) is longer than the model's context length ({limit} tokens)."
            return _error(400, message, "BadRequestError")
        if request.path == "/tokenize":
            return Answer(200, compact({"tokens": list(range(count)), "count": count, "max_model_len": limit}))
        if request.path == "/v1/embeddings":
            return _error(400, "This model does not support embeddings.", "BadRequestError")
        return Generation(
            request.path,
            str(body.get("model") or self.names[0]),
            bool(body.get("stream")),
            max(1, count),
            int(wanted) if wanted is not None else self.settings.tokens,
            chinese=is_chinese(text),
            choices=int(body.get("n") or 1),
            usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def _frame(self, generation: Generation, choices: list[Body]) -> Body:
        kind = "chat.completion.chunk" if generation.chat else "text_completion"
        frame: Body = {"id": generation.ident, "object": kind, "created": generation.created}
        return frame | {"model": generation.model, "choices": choices}

    def _one(self, generation: Generation, index: int, more: Body, finish: str | None) -> bytes:
        state = {"logprobs": None, "finish_reason": finish, "matched_stop": None}
        if not generation.chat:
            return sse({**self._frame(generation, [{"index": index, "text": more["content"], **state}]), "usage": None})
        return sse(self._frame(generation, [{"index": index, "delta": {"reasoning_content": None, **more}, **state}]))

    def opening(self, generation: Generation) -> Iterable[bytes]:
        if generation.chat:
            for index in range(generation.choices):
                yield self._one(generation, index, {"role": "assistant", "content": ""}, None)

    def event(self, generation: Generation, choice: int, text: str) -> bytes:
        return self._one(generation, choice, {"content": text}, None)

    def closing(self, generation: Generation, text: str, finish: str) -> Iterable[bytes]:
        for index in range(generation.choices):
            if generation.chat:
                if text:
                    yield self.event(generation, index, text)
                yield self._one(generation, index, {}, finish)
            else:
                yield self._one(generation, index, {"content": text}, finish)
        if generation.usage:
            yield sse({**self._frame(generation, []), "usage": _usage(generation)})
        yield DONE

    def whole(self, generation: Generation, finish: str) -> Answer:
        if generation.path == "/generate":
            meta = {"id": generation.ident, "finish_reason": {"type": finish, "length": generation.made}}
            counts = {"prompt_tokens": generation.prompt_tokens, "completion_tokens": generation.made}
            return Answer(200, compact({"text": generation.text, "meta_info": {**meta, **counts}}))
        state = {"logprobs": None, "finish_reason": finish, "matched_stop": None}
        message = {"role": "assistant", "content": generation.text, "reasoning_content": None}
        content: Body = {"message": message} if generation.chat else {"text": generation.text}
        document = {
            "id": generation.ident,
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": generation.created,
            "model": generation.model,
            "choices": [{"index": index, **content, **state} for index in range(generation.choices)],
            "usage": _usage(generation),
            "metadata": {"weight_version": "default"},
        }
        return Answer(200, compact(document))


def _usage(generation: Generation) -> Body:
    made = generation.made * generation.choices
    usage: Body = {"prompt_tokens": generation.prompt_tokens, "total_tokens": generation.prompt_tokens + made}
    usage |= {"completion_tokens": made, "prompt_tokens_details": None, "reasoning_tokens": 0}
    return usage | {"completion_tokens_details": None}


def _error(status: int, message: str, kind: str) -> Answer:
    flat = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return Answer(status, compact(flat))


def _invalid(path: str, kind: str, place: tuple[object, ...], text: str, given: object, **more: object) -> Answer:
    detail = {"type": kind, "loc": place, "msg": text, "input": given, **more}
    return _error(400, f"1 validation error:\n  {detail}\n\n{_SOURCE}\n    POST {path} [{detail}]", "Bad Request")
