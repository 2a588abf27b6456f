"""vLLM 0.32.0: answers, headers and errors as captured."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

from tests.fake.dialect import (
    DONE,
    Answer,
    Body,
    Dialect,
    Generation,
    compact,
    header_block,
    http_date,
    sse,
    wants_close,
)
from tests.fake.vllm_requests import BadRequestError, Reader
from tests.fake.vllm_requests import error as error_answer
from tests.fake.wire import Request

VERSION = "0.32.0"
_FINGERPRINT = f"vllm-{VERSION}-3c2c44d6"
_NO_MORE = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
_TRANSFER = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

_METHODS: Mapping[str, tuple[str, ...]] = {
    "/health": ("GET",),
    "/ping": ("GET", "POST"),
    "/version": ("GET",),
    "/load": ("GET",),
    "/metrics": ("GET", "HEAD"),
    "/docs": ("GET", "HEAD"),
    "/openapi.json": ("GET", "HEAD"),
    "/v1/models": ("GET",),
    "/v1/chat/completions": ("POST",),
    "/v1/completions": ("POST",),
    "/v1/responses": ("POST",),
    "/v1/messages": ("POST",),
    "/tokenize": ("POST",),
    "/detokenize": ("POST",),
}
_KEYED = ("/v1", "/v2", "/inference", "/cohere")


class Vllm(Dialect):
    """The OpenAI server of vLLM."""

    health_paths = frozenset({"/health"})

    def head(self, answer: Answer, request: Request) -> bytes:
        headers = [("date", http_date()), ("server", "uvicorn"), *answer.early]
        if answer.length and not answer.chunked:
            headers.append(("content-length", str(len(answer.body))))
        if answer.content_type is not None:
            headers.append(("content-type", answer.content_type))
        headers += [*answer.headers, *self._tail(request, vary=answer.vary)]
        if answer.chunked:
            headers.append(("transfer-encoding", "chunked"))
        return header_block(answer.status, headers)

    def stream_head(self, request: Request) -> bytes:
        headers = [("date", http_date()), ("server", "uvicorn"), ("content-type", "text/event-stream; charset=utf-8")]
        headers += [*self._tail(request, vary=True), ("transfer-encoding", "chunked")]
        return header_block(200, headers)

    def _tail(self, request: Request, *, vary: bool) -> Iterable[tuple[str, str]]:
        if vary:
            yield ("vary", "Origin")
        if self.settings.request_id_headers:
            yield ("x-request-id", request.header("x-request-id") or secrets.token_hex(16))
        if wants_close(request):
            yield ("connection", "close")

    def health(self, status: int) -> Answer:
        return Answer(status, content_type=None)

    def loading(self) -> Answer:
        return Answer(503, content_type=None)

    def answer(self, request: Request) -> Answer | Generation:
        path = request.path
        if path.startswith(_KEYED) and request.method != "OPTIONS" and not self.has_key(request):
            return Answer(401, compact({"error": "Unauthorized"}), vary=False)
        if request.method == "OPTIONS" and request.header("origin") and request.header("access-control-request-method"):
            return _preflight(request)
        methods = dict(_METHODS)
        if self.settings.embeddings:
            methods["/v1/embeddings"] = ("POST",)
        if self.settings.dev_mode:
            methods |= {"/server_info": ("GET",), "/is_sleeping": ("GET",)}
        if path.endswith("/") and path.rstrip("/") in methods:
            location = f"http://{request.header('host')}{path.rstrip('/')}"
            return Answer(307, content_type=None, headers=(("location", location),))
        if path not in methods:
            return Answer(404, compact({"detail": "Not Found"}))
        if request.method not in methods[path]:
            detail = compact({"detail": "Method Not Allowed"})
            return Answer(405, detail, early=(("allow", ", ".join(methods[path])),))
        if request.method != "POST" or path == "/ping":
            return self._get(path)
        try:
            return Reader(self.settings, self.names).read(request)
        except BadRequestError as refusal:
            return refusal.answer

    def _get(self, path: str) -> Answer:
        if path == "/ping":
            return self.health(200)
        if path == "/docs":
            return Answer(200, b"<!DOCTYPE html><title>FastAPI - Swagger UI</title>", "text/html; charset=utf-8")
        documents: Mapping[str, object] = {
            "/version": {"version": VERSION},
            "/load": {"server_load": self.counters.running if self.settings.load_tracking else 0},
            "/is_sleeping": {"is_sleeping": False},
            "/server_info": {"vllm_config": f"model='{self.settings.model}'", "vllm_env": {}, "system_env": {}},
            "/openapi.json": {
                "openapi": "3.1.0",
                "info": {"title": "FastAPI", "version": "0.1.0"},
                "paths": {
                    each: {
                        method.lower(): {"summary": each, "responses": {"200": {"description": "OK"}}}
                        for method in methods
                        if method != "HEAD"
                    }
                    for each, methods in _METHODS.items()
                },
            },
            "/v1/models": {"object": "list", "data": [self._model(name) for name in self.names]},
        }
        return Answer(200, compact(documents[path]))

    def _model(self, name: str) -> Body:
        now = int(time.time())
        permission = {
            "id": f"modelperm-{secrets.token_hex(8)}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": now,
            "owned_by": "vllm",
            "root": self.settings.model,
            "parent": None,
            "max_model_len": self.settings.max_model_len,
            "permission": [permission],
        }

    def error(self, status: int, message: str) -> Answer:
        kind = {429: "RateLimitError", 503: "ServiceUnavailableError"}.get(status, "InternalServerError")
        return error_answer(status, message, kind, None)

    def _frame(self, generation: Generation, choices: list[Body]) -> Body:
        kind = "chat.completion.chunk" if generation.chat else "text_completion"
        frame: Body = {"id": generation.ident, "object": kind, "created": generation.created}
        frame |= {"model": generation.model, "choices": choices}
        if generation.usage_always and choices:
            frame["usage"] = {**_usage(generation), "completion_tokens_details": None}
        return frame

    def opening(self, generation: Generation) -> Iterable[bytes]:
        if not generation.chat:
            return
        for index in range(generation.choices):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            frame = self._frame(generation, [choice])
            yield sse(frame | {"prompt_token_ids": None, "prompt_text": None})
        if generation.tool is not None:
            call = {"id": f"chatcmpl-tool-{secrets.token_hex(8)}", "type": "function", "index": 0}
            call["function"] = {"name": generation.tool}
            yield self._delta(generation, 0, {"content": None, "tool_calls": [call]})

    def _delta(self, generation: Generation, index: int, delta: Body) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}
        return sse(self._frame(generation, [choice]))

    def event(self, generation: Generation, choice: int, text: str) -> bytes:
        if not generation.chat:
            return sse(self._frame(generation, [_completion_choice(choice, text, None, None)]))
        if generation.tool is not None:
            call = {"index": 0, "function": {"arguments": text}}
            return self._delta(generation, choice, {"content": None, "tool_calls": [call]})
        return self._delta(generation, choice, {"content": text})

    def closing(self, generation: Generation, text: str, finish: str) -> Iterable[bytes]:
        reason = generation.stop_reason
        if generation.tool is not None and text:
            yield self.event(generation, 0, text)
        for index in range(generation.choices):
            if generation.chat:
                delta: Body = {} if generation.tool is not None else {"content": text}
                choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
                choice |= {"stop_reason": reason, "token_ids": None}
            else:
                choice = _completion_choice(index, text, finish, reason)
            frame = self._frame(generation, [choice])
            if not generation.usage:
                frame["system_fingerprint"] = _FINGERPRINT
            yield sse(frame)
        if generation.usage:
            frame = self._frame(generation, [])
            yield sse(frame | {"usage": _usage(generation), "system_fingerprint": _FINGERPRINT})
        yield DONE

    def whole(self, generation: Generation, finish: str) -> Answer:
        kind = "chat.completion" if generation.chat else "text_completion"
        choices = [self._choice(generation, index, finish) for index in range(generation.choices)]
        usage = {**_usage(generation), "prompt_tokens_details": None, "completion_tokens_details": None}
        document = {
            "id": generation.ident,
            "object": kind,
            "created": generation.created,
            "model": generation.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": usage,
            **(_NO_MORE if generation.chat else {}),
            **_TRANSFER,
        }
        return Answer(200, compact(document))

    def _choice(self, generation: Generation, index: int, finish: str) -> Body:
        tail = {"finish_reason": finish, "stop_reason": generation.stop_reason, "token_ids": None}
        if not generation.chat:
            choice: Body = {"index": index, "text": generation.text, "logprobs": None, **tail}
            return {**choice, "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
        message: Body = {"role": "assistant", "content": generation.text, "refusal": None, "annotations": None}
        message |= {"audio": None, "function_call": None}
        if generation.tool is not None:
            function = {"name": generation.tool, "arguments": generation.text}
            call = {"id": f"chatcmpl-tool-{secrets.token_hex(8)}", "type": "function", "function": function}
            message |= {"content": "", "tool_calls": [call]}
        message["reasoning"] = None
        return {"index": index, "message": message, "logprobs": _logprobs(generation), **tail, "routed_experts": None}


def _usage(generation: Generation) -> Body:
    made = generation.made * generation.choices
    total = generation.prompt_tokens + made
    return {"prompt_tokens": generation.prompt_tokens, "total_tokens": total, "completion_tokens": made}


def _logprobs(generation: Generation) -> Body | None:
    if generation.logprobs is None:
        return None
    content = []
    for index in range(generation.made):
        token = generation.piece(index)
        one: Body = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
        content.append({**one, "top_logprobs": [one] * generation.logprobs})
    return {"content": content}


def _completion_choice(index: int, text: str, finish: str | None, reason: int | None) -> Body:
    choice: Body = {"index": index, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": reason}
    return {**choice, "prompt_token_ids": None, "token_ids": None}


def _preflight(request: Request) -> Answer:
    asked = "Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
    headers = (
        ("vary", f"Origin, {asked}"),
        ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"),
        ("access-control-max-age", "600"),
        ("access-control-allow-headers", request.header("access-control-request-headers") or ""),
    )
    return Answer(400, b"Disallowed CORS origin", "text/plain; charset=utf-8", early=headers, vary=False)
