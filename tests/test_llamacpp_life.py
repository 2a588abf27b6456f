"""The life of a real llama.cpp behind the sidecar: it dies, hangs, is full, loses its sidecar and its clients.

The stories are those of `tests/vllm/test_life.py`, where llama.cpp can tell them, and fast. One is told elsewhere: that
open streams are finished when the engine, the sidecar or both are told to stop is
`tests/test_rollout.py::test_no_stream_of_llama_cpp_is_lost`. With the fake engine, every order of restarts is in
`tests/test_restart_orders.py`, how fast an end is seen in `tests/test_signals.py`, stalls in `tests/test_stall.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.llama_pod import NUMBERED, SLOTS, llama_pod, real_model
from tests.pod import Pod
from tests.stream_client import CHAT, Answer, Numbering, Verdict, stream

# The sidecar is a process of its own: the test's loop makes no difference.
pytestmark = [pytest.mark.asyncio(loop_factories=["asyncio"]), pytest.mark.timeout(180)]
# The short stories belong to the default run: they cost seconds, and no fake engine dies as a real one does.
takes_its_time = pytest.mark.engine

# Three probes that wait 5 s for an answer, and the pauses between them.
PROBES_SECONDS = 30.0
KILL_SECONDS = 1.0
SATURATION_SECONDS = 15.0
# What a machine that is busy with other things may add.
SLACK_SECONDS = 15.0


@asynccontextmanager
async def ready_pod(**environ: str) -> AsyncIterator[Pod]:
    async with llama_pod(await real_model(), **environ) as pod:
        await pod.start()
        await pod.until_state("ready", seconds=60)
        yield pod
        pod.assert_clean()


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=120)
    ) as session:
        yield session


async def speaking(session: aiohttp.ClientSession, pod: Pod, count: int, tokens: int) -> list[asyncio.Task[Answer]]:
    """Open so many streams, and wait until each has said something."""
    spoken = [asyncio.Event() for _ in range(count)]

    def heard(event: asyncio.Event) -> Numbering:
        def numbers(data: dict[str, Any]) -> Iterable[int]:
            found = list(NUMBERED.numbers(data))
            if found:
                event.set()
            return found

        return Numbering(NUMBERED.asked, numbers)

    tasks = [
        asyncio.create_task(stream(session, pod.url, tokens, heard(event)), name=f"stream {number}")
        for number, event in enumerate(spoken)
    ]
    async with asyncio.timeout(60):
        await asyncio.gather(*(event.wait() for event in spoken))
    return tasks


async def until(condition: Callable[[], Awaitable[object]], seconds: float) -> float:
    """Wait until it holds; return how many seconds that took."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_a_killed_engine_is_an_honest_end_and_a_new_run() -> None:
    async with ready_pod() as pod, client() as session:
        before, leader = await pod.health(), pod.leader
        assert leader is not None
        open_streams = await speaking(session, pod, SLOTS, 400)
        os.kill(leader, signal.SIGKILL)
        killed = time.monotonic()
        answers = await asyncio.gather(*open_streams)
        ended = time.monotonic() - killed
        after = await pod.until(lambda body: body.get("state") == "ready" and body["run"] != before["run"], 60)
        print(f"\nstreams over after {ended:.2f} s, ready again after {time.monotonic() - killed:.1f} s")
        print(f"{answers[0]}; last failure {after['last_failure']}")
        for answer in answers:
            # A cut inside an event can only be a broken connection.
            honest = answer.verdict is Verdict.FAILED and "upstream_error" in answer.detail
            assert honest or answer.verdict is Verdict.TRUNCATED, answer
        failure = after["last_failure"]
        assert (failure["reason"], failure["exit_code"]) == ("killed", 128 + signal.SIGKILL)
        assert after["restarts"] == before["restarts"] + 1
        assert pod.path[-3:] == ["failed", "loading", "ready"]
        assert pod.leader != leader
        (again,) = await asyncio.gather(*await speaking(session, pod, 1, 8))
        assert again.verdict is Verdict.WHOLE, again


@takes_its_time
async def test_a_frozen_engine_is_noticed_by_its_probes_and_forgiven() -> None:
    async with ready_pod(WINGS_ENGINE_KILL_SECONDS=f"{KILL_SECONDS:g}") as pod, client() as session:
        before, leader = await pod.health(), pod.leader
        assert leader is not None
        open_streams = await speaking(session, pod, 2, 200)
        os.kill(leader, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            lost = await pod.until_state("unhealthy", seconds=60)
            noticed = time.monotonic() - stopped

            async def given_up() -> bool:
                return (await pod.get("/livez/engine"))[0] == 503

            turned = await until(given_up, 60)
            assert (await pod.get("/livez"))[0] == 200
            assert not any(task.done() for task in open_streams)
        finally:
            os.kill(leader, signal.SIGCONT)
        going_on = time.monotonic()
        after = await pod.until_state("ready")
        print(f"\n{lost['reason']} after {noticed:.1f} s ({lost['detail']}), /livez/engine {turned:.1f} s later")
        print(f"ready {time.monotonic() - going_on:.2f} s after it went on")
        # One process: with its answers its counters are gone too, and no counter stands still that cannot be read.
        assert lost["reason"] == "probe_timeout"
        assert noticed < PROBES_SECONDS + SLACK_SECONDS
        assert turned < KILL_SECONDS + SLACK_SECONDS
        assert (after["run"], after["restarts"], pod.leader) == (before["run"], before["restarts"], leader)
        assert (await pod.get("/livez/engine"))[0] == 200
        assert [answer.verdict for answer in await asyncio.gather(*open_streams)] == [Verdict.WHOLE] * 2


async def test_a_sidecar_that_is_killed_adopts_the_engine() -> None:
    async with ready_pod() as pod, client() as session:
        before, leader, logged = await pod.health(), pod.leader, len(pod.changes)
        (open_stream,) = await speaking(session, pod, 1, 400)
        pod.sidecar.signal(signal.SIGKILL)
        await pod.sidecar.until(lambda: pod.sidecar.starts == 2, 15)
        answer = await open_stream
        after = await pod.until_state("ready")
        print(f"\n{answer}; {[(change.source, change.target) for change in pod.changes[logged:]]}")
        # Nobody is left to say it: the connection breaks.
        assert answer.verdict is Verdict.TRUNCATED
        assert (after["run"], after["restarts"]) == (before["run"], before["restarts"])
        assert (pod.leader, pod.engine.exits) == (leader, [])
        assert "failed" not in [change.target for change in pod.changes[logged:]]


async def engine_text(session: aiohttp.ClientSession, pod: Pod, path: str) -> aiohttp.ClientResponse:
    """Ask the engine itself."""
    response = await session.get(f"http://127.0.0.1:{pod.engine_port}{path}")
    assert response.status == 200, await response.text()
    return response


async def test_a_client_that_leaves_frees_its_slot_within_a_second() -> None:
    async with ready_pod() as pod, client() as session:
        body = {"messages": [{"role": "user", "content": "count"}], "stream": True, "max_tokens": 400, **NUMBERED.asked}

        async def taken() -> int:
            slots = await (await engine_text(session, pod, "/slots")).json()
            return sum(slot["is_processing"] for slot in slots)

        async def free() -> bool:
            return await taken() == 0

        seconds = []
        for _ in range(3):
            response = await session.post(pod.url + CHAT, json=body)
            await response.content.readline()
            assert await taken() == 1
            response.close()
            seconds.append(await until(free, 20))
        print(f"\nfree again after {', '.join(f'{1000 * each:.0f} ms' for each in seconds)}")
        # A machine that is busy with other things may be late, but not every time.
        assert min(seconds) <= 1.0


@takes_its_time
async def test_an_engine_with_a_queue_is_busy_not_dead() -> None:
    async with ready_pod(WINGS_STALL_SECONDS="10") as pod, client() as session:
        answers: list[Answer] = []
        waiting: list[float] = []
        told: set[tuple[str, int]] = set()
        path = pod.path

        async def stay() -> None:
            while True:
                answers.append(await stream(session, pod.url, 32, NUMBERED))

        crowd = [asyncio.create_task(stay(), name=f"client {number}") for number in range(4 * SLOTS)]
        try:
            await until(lambda: queue(session, pod), 30)
            began = time.monotonic()
            while time.monotonic() < began + SATURATION_SECONDS:
                waiting.append(await queue(session, pod))
                told.add(((await pod.health())["state"], (await pod.get("/livez/engine"))[0]))
                await asyncio.sleep(0.25)
        finally:
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
        print(f"\n{len(answers)} answers, {min(waiting):g} to {max(waiting):g} waiting, {len(waiting)} looks")
        assert told == {("ready", 200)}
        assert min(waiting) > 0
        assert pod.path == path
        assert answers
        assert {answer.verdict for answer in answers} == {Verdict.WHOLE}


async def queue(session: aiohttp.ClientSession, pod: Pod) -> float:
    """Return how many requests wait for a slot, as the engine says."""
    text = await (await engine_text(session, pod, "/metrics")).text()
    (deferred,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "llamacpp:requests_deferred"
    ]
    return deferred
