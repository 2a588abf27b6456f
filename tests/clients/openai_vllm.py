"""openai-python against vLLM: `openai_vllm.py BASE_URL MODEL STORY`, one JSON line as the result.

Runs in an environment of its own; see `tests/vllm/test_life.py`. The seed makes vLLM say the same twice.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import openai

CHINESE = [{"role": "user", "content": "你好，今天天气怎么样？请用一句话回答"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["北京", "Shanghai"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def client_of(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0)


def chat(base_url: str, model: str) -> dict[str, Any]:
    """A streamed chat in Chinese, with usage."""
    stream = client_of(base_url).chat.completions.create(
        model=model,
        messages=CHINESE,
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=200,
        seed=7,
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish": choices[-1].finish_reason,
        "completion_tokens": chunks[-1].usage.completion_tokens,
        "prompt_tokens": chunks[-1].usage.prompt_tokens,
    }


def tool(base_url: str, model: str) -> dict[str, Any]:
    """A streamed tool call, and what it was put together from."""
    stream = client_of(base_url).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "北京今天天气怎么样？"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        stream=True,
        max_tokens=200,
        seed=7,
    )
    name, arguments, pieces = "", "", 0
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
            pieces += 1
    return {"name": name, "arguments": json.loads(arguments), "pieces": pieces}


def completion(base_url: str, model: str) -> dict[str, Any]:
    """The older endpoint, whole and streamed."""
    asked = {"model": model, "prompt": "北京今天", "max_tokens": 32, "seed": 7, "extra_body": {"ignore_eos": True}}
    client = client_of(base_url)
    whole = client.completions.create(**asked)
    streamed = client.completions.create(**asked, stream=True)
    return {
        "text": whole.choices[0].text,
        "completion_tokens": whole.usage.completion_tokens,
        "streamed": "".join(chunk.choices[0].text for chunk in streamed if chunk.choices),
    }


def models(base_url: str, model: str) -> dict[str, Any]:
    """The list of models, and what the engine says to another name."""
    client = client_of(base_url)
    listed = [entry.id for entry in client.models.list()]
    try:
        client.chat.completions.create(model="nobody", messages=CHINESE)
    except openai.NotFoundError as error:
        return {"models": listed, "another": error.message}
    return {"models": listed, "another": None}


def cut(base_url: str, model: str) -> dict[str, Any]:
    """A stream whose engine dies: the client must raise, not end politely."""
    events = 0
    try:
        for _ in client_of(base_url).chat.completions.create(
            model=model, messages=CHINESE, stream=True, max_tokens=8000, extra_body={"ignore_eos": True}
        ):
            events += 1
    except Exception as error:  # what the library makes of it is the question
        return {"raised": type(error).__name__, "message": str(error), "events": events}
    return {"raised": None, "events": events}


STORIES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    story.__name__: story for story in (chat, tool, completion, models, cut)
}

if __name__ == "__main__":
    print(json.dumps(STORIES[sys.argv[3]](sys.argv[1], sys.argv[2])))
