"""An engine that says 200 and generates nothing: found, told, believed again only when it works."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.fake_engine import Fault, Metrics, StartEngine
from tests.sidecar import Sidecar, chat, sidecar

pytestmark = pytest.mark.slow


async def unfinished_stream(running: Sidecar) -> aiohttp.ClientResponse:
    """Return a stream of which the first bytes have come."""
    request = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    answer = await running.client.post(f"http://127.0.0.1:{running.port}/v1/chat/completions", json=request)
    await answer.content.readany()
    return answer


async def test_a_hang_behind_a_200_is_found_and_only_work_heals_it(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(fault=Fault.STALL, fault_after=3, fault_times=1, max_num_seqs=1)
    environ = {"WINGS_STALL_SECONDS": "1", "WINGS_ENGINE_KILL_SECONDS": "0.5"}
    async with sidecar(tmp_path, engine.port, **environ) as running:
        running.status("running")
        await running.health(lambda body: body["engine_ready"])
        stream = await unfinished_stream(running)
        body = await running.health(lambda body: body["state"] == "unhealthy")
        assert body["reason"] == "stalled"
        # A 200 will not do, so it says what will.
        assert body["detail"] == (
            "requests in flight, and nothing moved for 1 s; over when an answer goes on or the engine's counters move"
        )
        # The engine goes on saying that all is well, and is not believed.
        body = await running.health(lambda body: body["last_probe"]["outcome"] == "healthy")
        assert body["state"] == "unhealthy"
        assert (await running.get("/readyz"))[0] == 503
        await running.health(lambda body: body["since_seconds"] > 0.5)
        assert (await running.get("/livez/engine"))[0] == 503
        # It goes on, and nobody asks any more: the sidecar's own request is answered, which is work.
        await engine.until(lambda: engine.waiting == 1)
        stream.close()
        await running.health(lambda body: body["state"] == "ready")
        assert (await running.get("/livez/engine"))[0] == 200
        asked = [json.loads(request.body) for request in engine.requests if request.path == "/v1/completions"]
        assert asked == [{"model": engine.settings.model, "prompt": "1", "max_tokens": 1}] * len(asked) != []
        _, metrics = await running.get("/metrics")
        assert "wings_engine_stalls_total 1.0" in metrics


async def test_a_hang_that_became_a_failure_still_heals_without_traffic(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(fault=Fault.STALL, fault_after=3, fault_times=1, max_num_seqs=1)
    environ = {"WINGS_STALL_SECONDS": "1", "WINGS_STARTUP_TIMEOUT_SECONDS": "1"}
    async with sidecar(tmp_path, engine.port, **environ) as running:
        running.status("running")
        await running.health(lambda body: body["engine_ready"])
        stream = await unfinished_stream(running)
        # From here on no request of a client reaches the engine.
        assert (await running.health(lambda body: body["state"] == "failed"))["reason"] == "unresponsive"
        stream.close()
        await running.health(lambda body: body["state"] == "ready")


async def test_an_engine_without_counters_is_left_in_peace(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(fault=Fault.STALL, fault_after=3, metrics=Metrics.OFF)
    async with sidecar(tmp_path, engine.port, WINGS_STALL_SECONDS="1") as running:
        running.status("running")
        await running.health(lambda body: body["engine_ready"])
        stream = await unfinished_stream(running)
        await asyncio.sleep(3)
        assert (await running.get("/health"))[0] == 200
        stream.close()


async def test_a_queue_that_moves_is_busy_and_not_stalled(fake_engine: StartEngine, tmp_path: Path) -> None:
    # One slot, and prompts that take longer than the limit: every stream but one is silent, and no probe is answered.
    engine = await fake_engine(max_num_seqs=1, tokens=8, token_seconds=0.3)
    async with sidecar(tmp_path, engine.port, WINGS_STALL_SECONDS="1") as running:
        running.status("running")
        await running.health(lambda body: body["engine_ready"])
        chats = [asyncio.create_task(chat(running), name=f"chat {number}") for number in range(5)]
        await engine.until(lambda: engine.waiting == 4)
        while not all(task.done() for task in chats):
            assert (await running.get("/health"))[0] == 200
            await asyncio.sleep(0.1)
        assert [(await task)[-1] for task in chats] == ["[DONE]"] * 5


async def test_a_hang_is_found_although_no_client_waits_for_it(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(fault=Fault.STALL, fault_after=3, fault_times=1, max_num_seqs=1)
    async with sidecar(tmp_path, engine.port, WINGS_STALL_SECONDS="1") as running:
        running.status("running")
        await running.health(lambda body: body["engine_ready"])
        # Past the sidecar: what comes through it is never begun, and given up before it is late.
        url = f"http://127.0.0.1:{engine.port}/v1/chat/completions"
        hangs = await running.client.post(url, json={"messages": [{"role": "user", "content": "x"}], "stream": True})

        async def come_and_go() -> None:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await chat(running)

        clients = asyncio.create_task(come_and_go(), name="clients")
        try:
            await running.health(lambda body: body["reason"] == "stalled")
            assert not clients.done(), clients.exception()
        finally:
            clients.cancel()
            await asyncio.wait({clients})
            hangs.close()


async def test_a_hang_is_found_although_its_front_answers_other_things(
    fake_engine: StartEngine, tmp_path: Path
) -> None:
    """vLLM's server answers for a core that hangs: lists its models, refuses bad requests, begins streams."""
    engine = await fake_engine(fault=Fault.STALL, fault_after=3, fault_times=1, max_num_seqs=1)
    async with sidecar(tmp_path, engine.port, WINGS_STALL_SECONDS="1", WINGS_ENGINE_KILL_SECONDS="1") as running:
        running.status("running")
        await running.health(lambda body: body["engine_ready"])
        request = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        url = f"http://127.0.0.1:{running.port}/v1/chat/completions"
        streams = [await running.client.post(url, json=request)]
        seen: list[str] = []
        found = asyncio.Event()

        async def ask_on() -> None:
            while True:
                assert (await running.get("/v1/models"))[0] == 200
                async with running.client.post(url, json={}) as refused:
                    assert refused.status >= 400
                streams.append(await running.client.post(url, json=request))
                # An answer that was on its way when the stall was found is of the time before.
                asked_after = found.is_set()
                state = (await running.get("/health"))[1]["state"]
                seen.extend([state] if asked_after else [])
                await asyncio.sleep(0.1)

        asking = asyncio.create_task(ask_on(), name="clients")
        try:
            await running.health(lambda body: body["reason"] == "stalled")
            found.set()
            # What the front says later heals nothing: the kubelet gets its second.
            await running.health(
                lambda body: body["state"] != "unhealthy" or (bool(seen) and body["since_seconds"] > 1.2)
            )
            assert not asking.done(), asking.exception()
            assert set(seen) == {"unhealthy"}
            assert (await running.get("/livez/engine"))[0] == 503
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            for stream in streams:
                stream.close()
