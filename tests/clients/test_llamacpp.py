"""Each client against the real llama.cpp: sidecar and engine as two process trees, the way they run in a pod."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.clients.conftest import StartProgram
from tests.clients.program import KINDS, OPENAI, OPENAI_ASYNC, OPENAI_NODE, Kind
from tests.llama_pod import SLOTS, llama_pod, real_model
from tests.pod import Pod

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_factories=["asyncio"]), pytest.mark.timeout(300)]

# A stream that goes on until somebody ends it, at 512 tokens of context at the latest.
LONG = {"ignore_eos": True}
FIRST_TOKENS = re.compile(r"^wings_time_to_first_token_seconds_count\{[^}]*\} (\S+)$", re.MULTILINE)


async def first_tokens(pod: Pod) -> int:
    """Return how many streams have said something."""
    _, page = await pod.get("/metrics")
    return sum(int(float(count)) for count in FIRST_TOKENS.findall(page.decode()))


async def in_flight(pod: Pod) -> int:
    _, page = await pod.get("/metrics")
    found = re.search(rb"^wings_requests_in_flight (\S+)$", page, re.MULTILINE)
    return int(float(found[1])) if found else -1


async def until(pod: Pod, look: Callable[[Pod], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(60):
        while True:
            if await look(pod) == wanted:
                return
            await asyncio.sleep(0.05)


async def test_every_client_reads_the_same_answer_whole_and_streamed(client_program: StartProgram) -> None:
    asked = {"content": "请用中文介绍一下北京。", "temperature": 0.0, "max_tokens": 16}
    async with llama_pod(await real_model()) as pod:
        await pod.start()
        await pod.until_state("ready", seconds=60)
        told = {
            (kind.name, story): await client_program(kind).tell(story, url=pod.url, **asked)
            for kind in KINDS
            for story in ("whole", "streamed")
        }
        _, page = await pod.get("/metrics")
        listed = [
            await client_program(kind).tell("models", url=pod.url) for kind in (OPENAI, OPENAI_ASYNC, OPENAI_NODE)
        ]
    # openai-python and what is built on it leave on `[DONE]`, before the answer's last chunk.
    assert re.findall(rb"^wings_client_aborts_total\{[^}]*\} [1-9]", page, re.MULTILINE) == []
    answers = [told[OPENAI.name, "whole"]] * len(told)
    assert list(told.values()) == answers
    assert any("\u4e00" <= character <= "\u9fff" for character in answers[0]["text"])
    assert answers[0]["completion_tokens"] > 8
    [names] = {tuple(answer["models"]) for answer in listed}
    assert len(names) == 1


async def test_an_engine_that_is_killed_raises_in_every_client(client_program: StartProgram) -> None:
    programs = {kind: client_program(kind) for kind in KINDS}
    batches: list[tuple[Kind, ...]] = [KINDS[: len(KINDS) // 2], KINDS[len(KINDS) // 2 :]]
    assert all(len(batch) <= SLOTS for batch in batches)
    told: dict[Kind, dict[str, Any]] = {}
    async with llama_pod(await real_model()) as pod:
        await pod.start()
        run = None
        for batch in batches:
            # A kubelet starts it again.
            health = await pod.until(lambda body: body.get("state") == "ready" and body["run"] != run, 60)  # noqa: B023
            run = health["run"]
            began = await first_tokens(pod)
            async with asyncio.TaskGroup() as group:
                cut = {kind: group.create_task(programs[kind].tell("cut", url=pod.url, extra=LONG)) for kind in batch}
                await until(pod, first_tokens, began + len(batch))
                leader = pod.leader
                assert leader is not None
                os.killpg(leader, signal.SIGKILL)
            told |= {kind: task.result() for kind, task in cut.items()}
    for kind, answer in told.items():
        print(f"{kind.name}: {answer['raised']}: {answer['message']}, after {len(answer['text'])} characters")
        assert answer["raised"], kind.name
        assert answer["text"], kind.name


async def test_a_client_that_cancels_frees_its_slot(client_program: StartProgram) -> None:
    async with llama_pod(await real_model()) as pod:
        await pod.start()
        await pod.until_state("ready", seconds=60)
        for kind in KINDS:
            assert await client_program(kind).tell("leave", url=pod.url, extra=LONG) == {"left": True}
            await until(pod, in_flight, 0)
        _, page = await pod.get("/metrics")
    aborts = re.search(rb'^wings_client_aborts_total\{phase="stream"\} (\S+)$', page, re.MULTILINE)
    assert aborts is not None
    assert float(aborts[1]) == len(KINDS)
