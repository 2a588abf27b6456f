"""A cut stream, seen by the client most people have: the OpenAI SDK must raise, not return half an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.wire import EngineSide, Proxy, Script, proxy

openai = pytest.importorskip("openai")

DELTA = (
    b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"half"}}]}'
)


def dies(*, inside_an_event: bool, orderly: bool) -> Script:
    async def script(engine: EngineSide) -> None:
        await engine.request()
        await engine.start_events()
        await engine.event(DELTA)
        if inside_an_event:
            await engine.send(b'10\r\ndata: {"id":')
        await asyncio.sleep(0.01)
        if orderly:
            engine.close()
        else:
            engine.reset()

    return script


async def tokens(rig: Proxy) -> AsyncIterator[str]:
    url = f"http://127.0.0.1:{rig.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-none", max_retries=0) as client:
        messages = [{"role": "user", "content": "hi"}]
        async for chunk in await client.chat.completions.create(model="m", messages=messages, stream=True):
            yield chunk.choices[0].delta.content


@pytest.mark.parametrize("orderly", [False, True])
async def test_a_cut_stream_raises_and_says_why(orderly: bool) -> None:
    async with proxy(dies(inside_an_event=False, orderly=orderly)) as rig:
        stream = tokens(rig)
        assert await anext(stream) == "half"
        with pytest.raises(openai.APIError, match="the engine failed"):
            await anext(stream)


@pytest.mark.parametrize("orderly", [False, True])
async def test_one_cut_inside_an_event_raises_too(orderly: bool) -> None:
    async with proxy(dies(inside_an_event=True, orderly=orderly)) as rig:
        stream = tokens(rig)
        assert await anext(stream) == "half"
        with pytest.raises((openai.APIError, ValueError)):
            await anext(stream)


async def test_a_refusal_carries_its_code() -> None:
    async with proxy(dies(inside_an_event=False, orderly=True), max_body_bytes=10) as rig:
        with pytest.raises(openai.APIStatusError) as caught:
            await anext(tokens(rig))
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
