"""openai-python against a proxy: `openai_python.py BASE_URL STORY`, one JSON line as the result.

Runs in an environment of its own; see `tests/test_clients.py`.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import openai

MODEL = "/models/tiny-qwen2"
CHINESE = [{"role": "user", "content": "你好，请自我介绍一下"}]


def client_of(base_url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0, **options)


def streamed(base_url: str) -> dict[str, Any]:
    """A streamed chat in Chinese, with usage."""
    stream = client_of(base_url).chat.completions.create(
        model=MODEL, messages=CHINESE, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = next(chunk.usage for chunk in reversed(chunks) if chunk.usage)
    return {"text": text, "events": len(chunks), "completion_tokens": usage.completion_tokens}


def whole(base_url: str) -> dict[str, Any]:
    """Chat and completion, not streamed, and the list of models."""
    client = client_of(base_url)
    chat = client.chat.completions.create(model=MODEL, messages=CHINESE)
    completion = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4)
    return {
        "chat": chat.choices[0].message.content,
        "completion": completion.choices[0].text,
        "models": [model.id for model in client.models.list()],
    }


def cut(base_url: str) -> dict[str, Any]:
    """A stream whose engine dies: the client must raise, not end politely."""
    events = 0
    try:
        for _ in client_of(base_url).chat.completions.create(model=MODEL, messages=CHINESE, stream=True):
            events += 1
    except Exception as error:  # what the library makes of it is the question
        return {"raised": type(error).__name__, "message": str(error), "events": events}
    return {"raised": None, "events": events}


def refused(base_url: str) -> dict[str, Any]:
    """A proxy that is not ready: the class of the error and what it says."""
    try:
        client_of(base_url).chat.completions.create(model=MODEL, messages=CHINESE)
    except openai.APIStatusError as error:
        return {
            "raised": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "retry_after": error.response.headers.get("retry-after"),
        }
    return {"raised": None}


def unknown_model(base_url: str) -> dict[str, Any]:
    """The engine's own error, by class."""
    try:
        client_of(base_url).chat.completions.create(model="nobody", messages=CHINESE)
    except openai.NotFoundError as error:
        return {"raised": "NotFoundError", "message": error.message}
    return {"raised": None}


def leave(base_url: str) -> dict[str, Any]:
    """A client that closes its stream after three events."""
    stream = client_of(base_url).chat.completions.create(model=MODEL, messages=CHINESE, stream=True, max_tokens=5000)
    for number, _ in enumerate(stream, 1):
        if number == 3:
            stream.close()
            break
    return {"left_at": time.monotonic()}


STORIES: dict[str, Callable[[str], dict[str, Any]]] = {
    story.__name__: story for story in (streamed, whole, cut, refused, unknown_model, leave)
}

if __name__ == "__main__":
    print(json.dumps(STORIES[sys.argv[2]](sys.argv[1])))
