"""llama-index's OpenAILike; see `stories.py`."""

import asyncio
from importlib.metadata import version
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from stories import MODEL, QUESTION, raised, serve


def llm(url: str, *, key: str = "unused", model: str = MODEL, retries: int = 0, **options: Any) -> OpenAILike:
    return OpenAILike(
        api_base=f"{url}/v1",
        api_key=key,
        model=model,
        max_retries=retries,
        is_chat_model=True,
        is_function_calling_model=True,
        **options,
    )


def ask(content: str = QUESTION) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=content)]


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def told(response: Any, text: str) -> dict[str, Any]:
    usage = response.raw.usage
    return {"text": text, "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


def about() -> dict[str, Any]:
    return {"llama-index-llms-openai-like": version("llama-index-llms-openai-like")}


def whole(url: str, key: str = "unused", model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    response = llm(url, key=key, model=model, **more).chat(ask(content))
    return {**told(response, response.message.content), "finish": response.raw.choices[0].finish_reason}


def streamed(url: str, model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    wanted = {"additional_kwargs": {"stream_options": {"include_usage": True}}}
    responses = list(llm(url, model=model, **wanted, **more).stream_chat(ask(content)))
    reasons = [choice.finish_reason for response in responses for choice in response.raw.choices]
    text = "".join(response.delta or "" for response in responses)
    return {**told(responses[-1], text), "finish": reasons[-1]}


def _call(model: OpenAILike, response: Any) -> dict[str, Any]:
    [call] = model.get_tool_calls_from_response(response)
    return {"name": call.tool_name, "arguments": call.tool_kwargs, "finish": response.raw.choices[0].finish_reason}


def tool(url: str) -> dict[str, Any]:
    model = llm(url)
    return _call(model, model.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg=QUESTION))


def tool_streamed(url: str) -> dict[str, Any]:
    model = llm(url)
    tools = [FunctionTool.from_defaults(get_weather)]
    return _call(model, list(model.stream_chat_with_tools(tools, user_msg=QUESTION))[-1])


def cut(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    text = ""
    try:
        for response in llm(url, additional_kwargs={"extra_body": extra}).stream_chat(ask()):
            text += response.delta or ""
    except Exception as error:
        return {"text": text, **raised(error)}
    return {"text": text, "raised": None}


def leave(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Cancelled, as the synchronous one cannot be: see `leave_unnoticed`."""

    async def read(spoken: asyncio.Event) -> None:
        async for _ in await llm(url, additional_kwargs={"extra_body": extra}).astream_chat(ask()):
            spoken.set()

    async def go() -> bool:
        spoken = asyncio.Event()
        reading = asyncio.create_task(read(spoken))
        await spoken.wait()
        reading.cancel()
        try:
            await reading
        except asyncio.CancelledError:
            return True
        return False

    return {"left": asyncio.run(go())}


def leave_unnoticed(url: str) -> dict[str, Any]:
    """What a user of the synchronous client does; it keeps the connection, and reads no further."""
    stream = llm(url).stream_chat(ask())
    for number, _ in enumerate(stream, 1):
        if number == 3:
            break
    stream.close()
    return {"left": True}


def give_up(url: str) -> dict[str, Any]:
    """A time-out of the client's own, before the engine has said anything."""
    llm(url, timeout=1.5).chat(ask())
    return {"raised": None}


def patient(url: str, request_id: str) -> dict[str, Any]:
    """As the client comes: it tries again by itself."""
    model = OpenAILike(
        api_base=f"{url}/v1",
        api_key="unused",
        model=MODEL,
        is_chat_model=True,
        default_headers={"X-Request-Id": request_id},
    )
    return {"text": model.chat(ask()).message.content}


if __name__ == "__main__":
    serve(about, whole, streamed, tool, tool_streamed, cut, leave, leave_unnoticed, give_up, patient)
