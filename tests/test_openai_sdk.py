"""A cut stream, seen by the client most people have: the OpenAI SDK must raise, not return half an answer."""

from __future__ import annotations

import asyncio
import gc

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


async def chat(rig: Proxy, heard: list[str]) -> None:
    """Put the answer's tokens into *heard* as they come."""
    url = f"http://127.0.0.1:{rig.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-none", max_retries=0) as client:
        messages = [{"role": "user", "content": "hi"}]
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        try:
            async for chunk in stream:
                heard.append(chunk.choices[0].delta.content)  # noqa: PERF401 - a fault keeps what came before
        finally:
            await stream.close()


async def collected() -> None:
    """The SDK leaves its generators to the collector, and the loop a task to end each of them."""
    gc.collect()
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("orderly", [False, True])
async def test_a_cut_stream_raises_and_says_why(orderly: bool) -> None:
    async with proxy(dies(inside_an_event=False, orderly=orderly)) as rig:
        heard: list[str] = []
        with pytest.raises(openai.APIError, match="the engine failed"):
            await chat(rig, heard)
        await collected()
        assert heard == ["half"]


@pytest.mark.parametrize("orderly", [False, True])
async def test_one_cut_inside_an_event_raises_too(orderly: bool) -> None:
    async with proxy(dies(inside_an_event=True, orderly=orderly)) as rig:
        heard: list[str] = []
        with pytest.raises((openai.APIError, ValueError)):
            await chat(rig, heard)
        await collected()
        assert heard == ["half"]


async def test_a_refusal_carries_its_code() -> None:
    async with proxy(dies(inside_an_event=False, orderly=True), max_body_bytes=10) as rig:
        with pytest.raises(openai.APIStatusError) as caught:
            await chat(rig, [])
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
