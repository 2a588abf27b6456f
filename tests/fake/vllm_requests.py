"""vLLM 0.32.0: reading a request, and refusing it in the words and the order of the real one."""

from __future__ import annotations

import json
import secrets
import time

from tests.fake.dialect import Answer, Body, Generation, compact, count_tokens, is_chinese, prompt_text
from tests.fake.settings import FakeSettings
from tests.fake.wire import Request


class BadRequestError(Exception):
    """A request vLLM refuses; carries the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Reader:
    """What the settings make of the body of a POST."""

    def __init__(self, settings: FakeSettings, names: tuple[str, ...]) -> None:
        self.settings = settings
        self.names = names

    def read(self, request: Request) -> Answer | Generation:
        """Return the generation a request asks for, or a whole answer; BadRequestError if it is refused."""
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
            raise BadRequestError(error(404, message, "NotFoundError", "model"))
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
            raise BadRequestError(error(400, message, "BadRequestError", None))
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
            raise BadRequestError(error(400, message, "BadRequestError", None))
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


def error(status: int, message: str, kind: str, param: str | None) -> Answer:
    """Return an error in the shape of OpenAI's."""
    return Answer(status, compact({"error": {"message": message, "type": kind, "param": param, "code": status}}))


def _refused(message: str, param: str, value: object) -> BadRequestError:
    return BadRequestError(error(400, f"{message} (parameter={param}, value={value})", "BadRequestError", param))


def _invalid(kind: str, place: str, message: str, given: str, **more: object) -> BadRequestError:
    detail = {"type": kind, "loc": place, "msg": message, "input": given, **more}
    return BadRequestError(error(400, f"1 validation error:\n  {detail}", "Bad Request", place))


def _parsed(request: Request) -> Body:
    content_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if not request.body:
        raise _invalid("missing", "body", "Field required", "None")
    if content_type != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise BadRequestError(error(400, message, "Bad Request", None))
    try:
        body = json.loads(request.body)
    except json.JSONDecodeError as wrong:
        place, context = f"body.{wrong.pos}", {"error": wrong.msg}
        raise _invalid("json_invalid", place, "JSON decode error", "<dict of 0 items>", ctx=context) from wrong
    except (UnicodeDecodeError, RecursionError) as wrong:
        raise BadRequestError(error(400, "There was an error parsing the body", "Bad Request", None)) from wrong
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid("model_attributes_type", "body", message, str(body))
    return body
