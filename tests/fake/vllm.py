"""vLLM 0.32.0: answers, headers and errors as captured."""

from __future__ import annotations

import json
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
    count_tokens,
    header_block,
    http_date,
    is_chinese,
    prompt_text,
    sse,
    wants_close,
)
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


class BadRequestError(Exception):
    """A request vLLM refuses; carries the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


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
        try:
            return self._post(request) if request.method == "POST" and path != "/ping" else self._get(path)
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
                    each: {method.lower(): {"summary": each, "responses": {}} for method in methods if method != "HEAD"}
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

    def _post(self, request: Request) -> Answer | Generation:
        body = _parsed(request)
        text = prompt_text(body)
        count = count_tokens(text)
        if request.path in {"/tokenize", "/detokenize"}:
            tokens = list(range(count))
            limit = self.settings.max_model_len
            return Answer(200, compact({"count": count, "max_model_len": limit, "tokens": tokens, "token_strs": None}))
        if request.path == "/v1/chat/completions" and "messages" not in body:
            raise _invalid("missing", "body.messages", "Field required", f"<dict of {len(body)} items>")
        limit_name = "max_output_tokens" if request.path == "/v1/responses" else "max_tokens"
        wanted = body.get(limit_name, body.get("max_completion_tokens"))
        if isinstance(wanted, str) and not wanted.isdigit():
            message = "Input should be a valid integer, unable to parse string as an integer"
            raise _invalid("int_parsing", f"body.{limit_name}", message, wanted)
        model = body.get("model", self.names[0])
        if model not in self.names:
            aliases = ", ".join("<path>" if name.startswith("/") else name for name in self.names)
            message = f"The model `{model}` does not exist. Valid aliases: {aliases}"
            raise BadRequestError(_error(404, message, "NotFoundError", "model"))
        self._check_values(body, wanted, count)
        if request.path == "/v1/embeddings":
            return self._embeddings(body, count)
        generation = self._generation(request, body, count)
        generation.chinese = is_chinese(text)
        generation.tokens = int(wanted) if wanted is not None else self.settings.tokens
        self._stop_and_tools(body, generation)
        if request.path in {"/v1/responses", "/v1/messages"}:
            generation.made = generation.tokens
            return self._other(request.path, generation)
        return generation

    def _generation(self, request: Request, body: Body, count: int) -> Generation:
        options = body.get("stream_options") or {}
        ident = request.header("x-request-id")
        generation = Generation(
            request.path,
            # The first name, whichever was asked for.
            self.names[0],
            bool(body.get("stream")),
            max(1, count),
            0,
            choices=int(body.get("n") or 1),
            usage=bool(options.get("include_usage")),
            usage_always=bool(options.get("continuous_usage_stats")),
            logprobs=int(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
        )
        generation.ident = ("chatcmpl-" if generation.chat else "cmpl-") + (ident or generation.ident)
        return generation

    def _check_values(self, body: Body, wanted: object, count: int) -> None:
        limit = self.settings.max_model_len
        temperature = body.get("temperature")
        if isinstance(temperature, int | float) and temperature < 0:
            value = float(temperature)
            raise _refused(f"temperature must be non-negative, got {value}.", "temperature", value)
        if wanted is not None and int(str(wanted)) < 1:
            raise _refused(f"max_tokens must be at least 1, got {wanted}.", "max_tokens", wanted)
        if wanted is not None and int(str(wanted)) > limit:
            message = f"max_tokens={wanted} cannot be greater than max_model_len={limit}."
            raise _refused(f"{message} Please request fewer output tokens.", "max_tokens", wanted)
        if body.get("messages") == []:
            message = "Cannot apply chat template to an empty conversation. Provide at least one message."
            raise BadRequestError(_error(400, message, "BadRequestError", None))
        if count > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, your prompt contains at least "
                f"{limit + 1} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt."
            )
            raise _refused(message, "input_tokens", limit + 1)

    def _stop_and_tools(self, body: Body, generation: Generation) -> None:
        if body.get("stop_token_ids"):
            generation.tokens, generation.finish = 0, "stop"
            generation.stop_reason = body["stop_token_ids"][0]
        if body.get("response_format"):
            generation.finish = "stop"
        choice = body.get("tool_choice", "auto" if body.get("tools") else "none")
        if choice == "none":
            return
        if not self.settings.tool_parser:
            message = (
                f"{json.dumps(choice) if isinstance(choice, str) else 'named'} tool choice requires "
                "--enable-auto-tool-choice and --tool-call-parser to be set"
            )
            raise BadRequestError(_error(400, message, "BadRequestError", None))
        if choice != "auto" or self.settings.calls_tools:
            name = choice["function"]["name"] if isinstance(choice, dict) else body["tools"][0]["function"]["name"]
            generation.tool = str(name)
            generation.finish = "stop" if isinstance(choice, dict) else "tool_calls"

    def _embeddings(self, body: Body, count: int) -> Answer:
        texts = body.get("input")
        number = len(texts) if isinstance(texts, list) else 1
        data = [{"index": index, "object": "embedding", "embedding": [0.25, -0.5]} for index in range(number)]
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
        ident = f"embd-{secrets.token_hex(8)}"
        created = int(time.time())
        whole = {
            "id": ident,
            "object": "list",
            "created": created,
            "model": self.names[0],
            "data": data,
            "usage": usage,
        }
        return Answer(200, compact(whole))

    def _other(self, path: str, generation: Generation) -> Answer:
        """Anthropic messages and OpenAI responses, whole only."""
        usage = {"input_tokens": generation.prompt_tokens, "output_tokens": generation.tokens}
        if path == "/v1/messages":
            message = {
                "id": generation.ident,
                "type": "message",
                "role": "assistant",
                "content": [{"type": "text", "text": generation.text}],
                "model": generation.model,
                "stop_reason": "max_tokens",
                "usage": usage,
            }
            return Answer(200, compact(message))
        return Answer(200, compact(_response(generation)))

    def error(self, status: int, message: str) -> Answer:
        kind = {429: "RateLimitError", 503: "ServiceUnavailableError"}.get(status, "InternalServerError")
        return _error(status, message, kind, None)

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


def _response(generation: Generation) -> Body:
    """The document of POST /v1/responses."""
    text: Body = {"annotations": [], "text": generation.text, "type": "output_text", "logprobs": None}
    output: Body = {"id": f"msg_{secrets.token_hex(8)}", "content": [text], "role": "assistant"}
    output |= {"status": "completed", "type": "message", "phase": None}
    read: Body = {
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "input_tokens_per_turn": [],
        "cached_tokens_per_turn": [],
    }
    made: Body = {"reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": []}
    usage: Body = {"input_tokens": generation.prompt_tokens, "input_tokens_details": read}
    usage |= {"output_tokens": generation.made}
    usage |= {"output_tokens_details": {**made, "tool_output_tokens_per_turn": []}}
    return {
        "id": f"resp_{secrets.token_hex(8)}",
        "created_at": generation.created,
        "incomplete_details": {"reason": "max_output_tokens"},
        **dict.fromkeys(("instructions", "metadata")),
        "model": generation.model,
        "object": "response",
        "output": [output],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": generation.tokens,
        **dict.fromkeys(("max_tool_calls", "previous_response_id", "prompt", "reasoning")),
        "service_tier": "auto",
        "status": "incomplete",
        **dict.fromkeys(("text", "top_logprobs")),
        "truncation": "disabled",
        "usage": {**usage, "total_tokens": generation.prompt_tokens + generation.made},
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")),
    }


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


def _error(status: int, message: str, kind: str, param: str | None) -> Answer:
    return Answer(status, compact({"error": {"message": message, "type": kind, "param": param, "code": status}}))


def _refused(message: str, param: str, value: object) -> BadRequestError:
    return BadRequestError(_error(400, f"{message} (parameter={param}, value={value})", "BadRequestError", param))


def _invalid(kind: str, place: str, message: str, given: str, **more: object) -> BadRequestError:
    detail = {"type": kind, "loc": place, "msg": message, "input": given, **more}
    return BadRequestError(_error(400, f"1 validation error:\n  {detail}", "Bad Request", place))


def _parsed(request: Request) -> Body:
    content_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if not request.body:
        raise _invalid("missing", "body", "Field required", "None")
    if content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise BadRequestError(_error(400, message, "Bad Request", None))
    try:
        body = json.loads(request.body)
    except json.JSONDecodeError as error:
        place, context = f"body.{error.pos}", {"error": error.msg}
        raise _invalid("json_invalid", place, "JSON decode error", "<dict of 0 items>", ctx=context) from error
    except UnicodeDecodeError as error:
        raise BadRequestError(_error(400, "There was an error parsing the body", "Bad Request", None)) from error
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid("model_attributes_type", "body", message, str(body))
    return body


def _preflight(request: Request) -> Answer:
    asked = "Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
    headers = (
        ("vary", f"Origin, {asked}"),
        ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY"),
        ("access-control-max-age", "600"),
        ("access-control-allow-headers", request.header("access-control-request-headers") or ""),
    )
    return Answer(400, b"Disallowed CORS origin", "text/plain; charset=utf-8", early=headers, vary=False)
