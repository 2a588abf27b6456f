"""llama.cpp's server b11549: answers, headers and errors as captured."""

from __future__ import annotations

import json
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
    is_chinese,
    prompt_text,
    sse,
    wants_close,
)
from tests.fake.wire import Request

_GETS = ("/health", "/v1/health", "/v1/models", "/models", "/props", "/slots", "/metrics", "/")
_CHAT = ("/v1/chat/completions", "/chat/completions")
_POSTS = (*_CHAT, "/v1/completions", "/completions", "/completion", "/tokenize", "/v1/embeddings", "/embeddings")
_JSON = "application/json; charset=utf-8"


class Llamacpp(Dialect):
    """`llama-server`."""

    opens_with_token = True
    health_paths = frozenset({"/health", "/v1/health"})

    def head(self, answer: Answer, request: Request) -> bytes:
        headers = [("Server", "llama.cpp"), ("Access-Control-Allow-Origin", request.header("origin") or "")]
        headers += answer.early
        if answer.content_type is not None:
            headers.append(("Content-Type", answer.content_type))
        framing = ("Transfer-Encoding", "chunked") if answer.chunked else ("Content-Length", str(len(answer.body)))
        closing = answer.status >= 400 or wants_close(request)
        keep = ("Connection", "close") if closing else ("Keep-Alive", "timeout=5, max=100")
        return header_block(answer.status, [*headers, framing, keep, *answer.headers])

    def stream_head(self, request: Request) -> bytes:
        unbuffered = (("X-Accel-Buffering", "no"),)
        return self.head(Answer(200, content_type="text/event-stream", early=unbuffered, chunked=True), request)

    def health(self, status: int) -> Answer:
        return Answer(200, compact({"status": "ok"}), _JSON) if status == 200 else self.loading()

    def loading(self) -> Answer:
        return _answer(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})

    def error(self, status: int, message: str) -> Answer:
        return _error(status, message, "unavailable_error" if status == 503 else "server_error")

    def answer(self, request: Request) -> Answer | Generation:
        path = request.path
        if path not in {"/health", "/v1/health", "/models", "/v1/models", "/"} and not self.has_key(request):
            return _error(401, "Invalid API Key", "authentication_error")
        if request.method == "OPTIONS":
            allowed = (
                ("Access-Control-Allow-Credentials", "true"),
                ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
                ("Access-Control-Allow-Headers", "*"),
            )
            return Answer(200, content_type="text/html", early=allowed)
        if request.method in {"GET", "HEAD"} and path in _GETS:
            return self._get(path)
        if request.method == "POST" and path in _POSTS:
            return self._post(request)
        return _answer(404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})

    def _get(self, path: str) -> Answer:
        if path == "/":
            return Answer(200, b"<!DOCTYPE html><title>llama.cpp</title>", "text/html; charset=utf-8")
        name = self.names[0]
        slot = {"n_ctx": self._slot_context, "speculative": False, "is_processing": False}
        model = {"id": name, "aliases": [name], "tags": [], "object": "model", "owned_by": "llamacpp"}
        documents: Mapping[str, object] = {
            "/health": {"status": "ok"},
            "/v1/health": {"status": "ok"},
            "/props": {"total_slots": self.settings.max_num_seqs, "model_path": self.settings.model},
            "/slots": [{"id": index, **slot} for index in range(self.settings.max_num_seqs)],
            "/v1/models": {"models": [{"name": name, "model": name}], "object": "list", "data": [model]},
            "/models": {"models": [{"name": name, "model": name}], "object": "list", "data": [model]},
        }
        return _answer(200, documents[path])

    @property
    def _slot_context(self) -> int:
        return self.settings.max_model_len

    def _post(self, request: Request) -> Answer | Generation:
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError) as wrong:
            message = f"[json.exception.parse_error.101] parse error at line 1, column 1: {wrong}"
            return _error(400, message, "invalid_request_error")
        if request.path in _CHAT and "messages" not in body:
            return _error(400, "'messages' is required", "invalid_request_error")
        if request.path.endswith("embeddings"):
            message = "This server does not support embeddings. Start it with `--embeddings`"
            return _error(501, message, "not_supported_error")
        text = prompt_text(body)
        count = count_tokens(text)
        if request.path == "/tokenize":
            return _answer(200, {"tokens": list(range(count))})
        if count > self._slot_context:
            message = f"request ({count} tokens) exceeds the available context size ({self._slot_context} tokens)"
            error = {"code": 400, "message": f"{message}, try increasing it", "type": "exceed_context_size_error"}
            return _answer(400, {"error": {**error, "n_prompt_tokens": count, "n_ctx": self._slot_context}})
        wanted = body.get("max_tokens", body.get("n_predict"))
        generation = Generation(
            request.path,
            self.names[0],
            bool(body.get("stream")),
            max(1, count),
            int(wanted) if wanted is not None else self.settings.tokens,
            chinese=is_chinese(text),
            usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )
        generation.ident = f"chatcmpl-{generation.ident}"
        return generation

    def _frame(self, generation: Generation, choices: list[Body]) -> Body:
        kind = "chat.completion.chunk" if generation.chat else "text_completion"
        frame: Body = {"choices": choices, "created": generation.created, "id": generation.ident}
        return frame | {"model": generation.model, "system_fingerprint": "b0-unknown", "object": kind}

    def _one(self, generation: Generation, content: Body, finish: str | None) -> Body:
        if not generation.chat:
            choice: Body = {"text": content.get("content") or "", "index": 0, "logprobs": None}
            return self._frame(generation, [{**choice, "finish_reason": finish}])
        return self._frame(generation, [{"finish_reason": finish, "index": 0, "delta": content}])

    def opening(self, generation: Generation) -> Iterable[bytes]:
        # The role and the first token come in one HTTP chunk (captured).
        if generation.chat and generation.tokens:
            first = self._one(generation, {"role": "assistant", "content": None}, None)
            yield sse(first) + self.event(generation, 0, generation.piece(0))

    def event(self, generation: Generation, choice: int, text: str) -> bytes:
        return sse(self._one(generation, {"content": text}, None))

    def closing(self, generation: Generation, text: str, finish: str) -> Iterable[bytes]:
        if text:
            yield self.event(generation, 0, text)
        last = self._one(generation, {}, finish)
        if generation.usage:
            usage = {**self._frame(generation, []), "usage": _usage(generation), "timings": _timings(generation)}
            yield sse(last) + sse(usage)
        else:
            yield sse({**last, "timings": _timings(generation)})
        yield DONE

    def whole(self, generation: Generation, finish: str) -> Answer:
        choice: Body = {"finish_reason": finish, "index": 0}
        choice |= {"message": {"role": "assistant", "content": generation.text}} if generation.chat else {}
        if not generation.chat:
            choice |= {"text": generation.text, "logprobs": None}
        document = self._frame(generation, [choice])
        document["object"] = "chat.completion" if generation.chat else "text_completion"
        return _answer(200, {**document, "usage": _usage(generation), "timings": _timings(generation)})


def _usage(generation: Generation) -> Body:
    counts = {"completion_tokens": generation.made, "prompt_tokens": generation.prompt_tokens}
    total = generation.made + generation.prompt_tokens
    return {**counts, "total_tokens": total, "prompt_tokens_details": {"cached_tokens": 0}}


def _timings(generation: Generation) -> Body:
    return {"cache_n": 0, "prompt_n": generation.prompt_tokens, "predicted_n": generation.made}


def _answer(status: int, value: object) -> Answer:
    return Answer(status, compact(value), _JSON)


def _error(status: int, message: str, kind: str) -> Answer:
    return _answer(status, {"error": {"code": status, "message": message, "type": kind}})
