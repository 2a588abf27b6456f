"""openai-python, its asynchronous client; see `stories.py`."""

import asyncio
import json
from importlib.metadata import version
from typing import Any

import openai
from stories import MODEL, QUESTION, WEATHER, raised, serve


def client_of(url: str, *, key: str = "unused", retries: int = 0, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, **options)


def ask(content: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": content}]


async def about() -> dict[str, Any]:
    return {"openai": version("openai")}


async def models(url: str) -> dict[str, Any]:
    return {"models": [model.id async for model in client_of(url).models.list()]}


async def whole(
    url: str, key: str = "unused", model: str = MODEL, content: str = QUESTION, **more: Any
) -> dict[str, Any]:
    answer = await client_of(url, key=key).chat.completions.create(model=model, messages=ask(content), **more)
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }


async def streamed(url: str, model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    stream = await client_of(url).chat.completions.create(
        model=model, messages=ask(content), stream=True, stream_options={"include_usage": True}, **more
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish": choices[-1].finish_reason,
        "prompt_tokens": chunks[-1].usage.prompt_tokens,
        "completion_tokens": chunks[-1].usage.completion_tokens,
    }


async def tool(url: str) -> dict[str, Any]:
    answer = await client_of(url).chat.completions.create(model=MODEL, messages=ask(), tools=[WEATHER])
    [call] = answer.choices[0].message.tool_calls
    return {
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "finish": answer.choices[0].finish_reason,
    }


async def tool_streamed(url: str) -> dict[str, Any]:
    name, arguments, finish = "", "", None
    stream = await client_of(url).chat.completions.create(model=MODEL, messages=ask(), tools=[WEATHER], stream=True)
    async for chunk in stream:
        finish = chunk.choices[0].finish_reason or finish
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    return {"name": name, "arguments": json.loads(arguments), "finish": finish}


async def cut(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    text = ""
    try:
        async for chunk in await client_of(url).chat.completions.create(
            model=MODEL, messages=ask(), stream=True, extra_body=extra
        ):
            text += chunk.choices[0].delta.content or ""
    except Exception as error:
        return {"text": text, **raised(error)}
    return {"text": text, "raised": None}


async def leave(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Cancelled in the middle of a stream, as a web framework does when its own client goes."""
    spoken = asyncio.Event()

    async def read() -> None:
        async with await client_of(url).chat.completions.create(
            model=MODEL, messages=ask(), stream=True, extra_body=extra
        ) as stream:
            async for _ in stream:
                spoken.set()

    reading = asyncio.create_task(read())
    await spoken.wait()
    reading.cancel()
    try:
        await reading
    except asyncio.CancelledError:
        return {"left": True}
    return {"left": False}


async def give_up(url: str) -> dict[str, Any]:
    """A time-out of the client's own, before the engine has said anything."""
    async with asyncio.timeout(1.5):
        await client_of(url).chat.completions.create(model=MODEL, messages=ask())
    return {"raised": None}


async def patient(url: str, request_id: str) -> dict[str, Any]:
    """As the client comes: it tries again by itself."""
    client = client_of(url, retries=openai.DEFAULT_MAX_RETRIES, default_headers={"X-Request-Id": request_id})
    answer = await client.chat.completions.create(model=MODEL, messages=ask())
    return {"text": answer.choices[0].message.content}


if __name__ == "__main__":
    with asyncio.Runner() as runner:

        def in_loop(story: Any) -> Any:
            def tell(**order: Any) -> Any:
                return runner.run(story(**order))

            tell.__name__ = story.__name__
            return tell

        stories = (about, models, whole, streamed, tool, tool_streamed, cut, leave, give_up, patient)
        serve(*map(in_loop, stories))
