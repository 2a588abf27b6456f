"""openai-python, its synchronous client; see `stories.py`."""

import json
from importlib.metadata import version
from typing import Any

import openai
from stories import MODEL, QUESTION, WEATHER, raised, serve


def client_of(url: str, *, key: str = "unused", retries: int = 0, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, **options)


def ask(content: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": content}]


def about() -> dict[str, Any]:
    return {"openai": version("openai")}


def models(url: str) -> dict[str, Any]:
    return {"models": [model.id for model in client_of(url).models.list()]}


def whole(url: str, key: str = "unused", model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    answer = client_of(url, key=key).chat.completions.create(model=model, messages=ask(content), **more)
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }


def streamed(url: str, model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    chunks = list(
        client_of(url).chat.completions.create(
            model=model, messages=ask(content), stream=True, stream_options={"include_usage": True}, **more
        )
    )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish": choices[-1].finish_reason,
        "prompt_tokens": chunks[-1].usage.prompt_tokens,
        "completion_tokens": chunks[-1].usage.completion_tokens,
    }


def tool(url: str) -> dict[str, Any]:
    answer = client_of(url).chat.completions.create(model=MODEL, messages=ask(), tools=[WEATHER])
    [call] = answer.choices[0].message.tool_calls
    return {
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "finish": answer.choices[0].finish_reason,
    }


def tool_streamed(url: str) -> dict[str, Any]:
    name, arguments, finish = "", "", None
    for chunk in client_of(url).chat.completions.create(model=MODEL, messages=ask(), tools=[WEATHER], stream=True):
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    return {"name": name, "arguments": json.loads(arguments), "finish": finish}


def cut(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    text = ""
    try:
        for chunk in client_of(url).chat.completions.create(model=MODEL, messages=ask(), stream=True, extra_body=extra):
            text += chunk.choices[0].delta.content or ""
    except Exception as error:
        return {"text": text, **raised(error)}
    return {"text": text, "raised": None}


def leave(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    stream = client_of(url).chat.completions.create(model=MODEL, messages=ask(), stream=True, extra_body=extra)
    for number, _ in enumerate(stream, 1):
        if number == 3:
            break
    stream.close()
    return {"left": True}


def give_up(url: str) -> dict[str, Any]:
    """A time-out of the client's own, before the engine has said anything."""
    client_of(url, timeout=1.5).chat.completions.create(model=MODEL, messages=ask())
    return {"raised": None}


def patient(url: str, request_id: str) -> dict[str, Any]:
    """As the client comes: it tries again by itself."""
    client = client_of(url, retries=openai.DEFAULT_MAX_RETRIES, default_headers={"X-Request-Id": request_id})
    return {"text": client.chat.completions.create(model=MODEL, messages=ask()).choices[0].message.content}


def raw(url: str, request_id: str) -> dict[str, Any]:
    """The answer under the answer: headers, and the body byte for byte."""
    client = client_of(url, default_headers={"X-Request-Id": request_id})
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=ask())
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=ask(), stream=True) as stream:
        lines = list(stream.iter_lines())
        streamed_headers = dict(stream.headers)
    return {
        "status": answer.status_code,
        "headers": {name.lower(): value for name, value in answer.headers.items()},
        "text": answer.parse().choices[0].message.content,
        "streamed_headers": {name.lower(): value for name, value in streamed_headers.items()},
        "last_line": [line for line in lines if line][-1],
    }


def completion(url: str) -> dict[str, Any]:
    """The older endpoint, whole and streamed."""
    client = client_of(url)
    answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4)
    stream = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, stream=True)
    return {"text": answer.choices[0].text, "streamed": "".join(chunk.choices[0].text for chunk in stream)}


if __name__ == "__main__":
    serve(about, models, whole, streamed, tool, tool_streamed, cut, leave, give_up, patient, raw, completion)
