"""langchain-openai's ChatOpenAI; see `stories.py`."""

from importlib.metadata import version
from typing import Any

from langchain_openai import ChatOpenAI
from stories import MODEL, QUESTION, WEATHER, raised, serve


def chat(url: str, *, key: str = "unused", model: str = MODEL, retries: int = 0, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_retries=retries, **options)


def told(message: Any) -> dict[str, Any]:
    return {
        "text": message.text,
        "finish": message.response_metadata.get("finish_reason"),
        "prompt_tokens": message.usage_metadata["input_tokens"],
        "completion_tokens": message.usage_metadata["output_tokens"],
    }


def about() -> dict[str, Any]:
    return {"langchain-openai": version("langchain-openai")}


def whole(url: str, key: str = "unused", model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    return told(chat(url, key=key, model=model, **more).invoke(content))


def streamed(url: str, model: str = MODEL, content: str = QUESTION, **more: Any) -> dict[str, Any]:
    first, *others = chat(url, model=model, stream_usage=True, **more).stream(content)
    message = first
    for other in others:
        message += other
    return told(message)


def _call(message: Any) -> dict[str, Any]:
    [call] = message.tool_calls
    return {
        "name": call["name"],
        "arguments": call["args"],
        "finish": message.response_metadata.get("finish_reason"),
    }


def tool(url: str) -> dict[str, Any]:
    return _call(chat(url).bind_tools([WEATHER]).invoke(QUESTION))


def tool_streamed(url: str) -> dict[str, Any]:
    first, *others = chat(url).bind_tools([WEATHER]).stream(QUESTION)
    message = first
    for other in others:
        message += other
    return _call(message)


def cut(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    text = ""
    try:
        for chunk in chat(url, extra_body=extra).stream(QUESTION):
            text += chunk.text
    except Exception as error:
        return {"text": text, **raised(error)}
    return {"text": text, "raised": None}


def leave(url: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    stream = chat(url, extra_body=extra).stream(QUESTION)
    for number, _ in enumerate(stream, 1):
        if number == 3:
            break
    stream.close()
    return {"left": True}


def give_up(url: str) -> dict[str, Any]:
    """A time-out of the client's own, before the engine has said anything."""
    chat(url, timeout=1.5).invoke(QUESTION)
    return {"raised": None}


def patient(url: str, request_id: str) -> dict[str, Any]:
    """As the client comes: it tries again by itself."""
    client = ChatOpenAI(
        base_url=f"{url}/v1", api_key="unused", model=MODEL, default_headers={"X-Request-Id": request_id}
    )
    return {"text": client.invoke(QUESTION).text}


if __name__ == "__main__":
    serve(about, whole, streamed, tool, tool_streamed, cut, leave, give_up, patient)
