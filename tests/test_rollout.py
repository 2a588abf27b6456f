"""The whole stack is stopped and replaced under open streams, and no client notices.

Two stacks on ports of their own; a client that picks a ready one, as a Service does, and goes to another when it is
refused. What each stack went through is recorded, and printed with `pytest -s`. With the fake engine there are many
streams; llama.cpp shows that a real engine keeps to the same rules.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.kubelet import Container
from tests.llama_pod import NUMBERED, SLOTS, llama_pod, real_model
from tests.pod import Pod
from tests.stream_client import FAKE, Answer, Numbering, Verdict, stream

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"]), pytest.mark.timeout(300)]

TOKEN_SECONDS = 0.04
ROLLOUTS = 3
# How late a Service hears of a pod that is not ready any more.
ENDPOINT_LAG_SECONDS = 0.5
QUIET_SECONDS = 1.0
GRACE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Load:
    """An engine, and the streams it is under: a stack is only stopped while `open_streams` are open."""

    new_pod: Callable[[], Pod]
    numbering: Numbering
    clients: int
    open_streams: int
    # Client n asks for n more, so that they do not march in step.
    tokens: int


class Service:
    """Which stacks are ready, as of a while ago."""

    def __init__(self) -> None:
        self.pods: list[Pod] = []
        self.ready: list[Pod] = []

    async def follow(self) -> None:
        """Look every 100 ms; what was seen counts only after the lag."""
        loop = asyncio.get_running_loop()
        while True:
            pods = self.pods
            statuses = await asyncio.gather(*(pod.get("/readyz") for pod in pods))
            ready = [pod for pod, (status, _) in zip(pods, statuses, strict=True) if status == 200]
            loop.call_later(ENDPOINT_LAG_SECONDS, setattr, self, "ready", ready)
            await asyncio.sleep(0.1)


@dataclass
class Crowd:
    """Clients that stream all the time, and what became of it."""

    load: Load
    service: Service
    session: aiohttp.ClientSession
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    bad: list[Answer] = field(default_factory=list)
    open: int = 0
    leaving: bool = False

    async def stay(self, number: int) -> None:
        """One client: one stream after the other, none given up before it is whole."""
        while not self.leaving:
            pods = self.service.ready
            if not pods:
                await asyncio.sleep(0.05)
                continue
            self.open += 1
            url = pods[self.open % len(pods)].url
            answer = await stream(self.session, url, self.load.tokens + number, self.load.numbering)
            self.open -= 1
            self.verdicts[answer.verdict] += 1
            if answer.verdict is Verdict.REFUSED:
                await asyncio.sleep(0.05)
            elif answer.verdict is not Verdict.WHOLE:
                self.bad.append(answer)

    async def until_open(self) -> None:
        """Wait until as many streams are open as there have to be."""
        deadline = time.monotonic() + 60
        while self.open < self.load.open_streams:
            assert time.monotonic() < deadline, f"{self.open} streams open, {self.verdicts}, {self.bad[:3]}"
            await asyncio.sleep(0.01)


@dataclass
class Timeline:
    """What a stack went through while it was stopped: a line whenever something changed."""

    pod: Pod
    lines: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _last: tuple[object, ...] = ()

    async def record(self) -> None:
        """Look every 20 ms; at the hold before the streams it protects, so that it is never missed for one of them."""
        while True:
            hold = "held" if (self.pod.volume / "hold").exists() else "no hold"
            self._look((await self.pod.health()).get("state", "gone"), hold, await self._in_flight())
            await asyncio.sleep(0.02)

    def _look(self, state: str, hold: str, in_flight: int | None) -> None:
        """Add a line if anything changed; of the number in flight, whether it is 0."""
        pod = self.pod
        codes = [container.exits[-1].code if container.exits else "-" for container in (pod.engine, pod.sidecar)]
        phase = "-" if pod.status is None else pod.status.phase.value
        idle = "" if in_flight is None else "idle" if in_flight == 0 else "busy"
        if self._last != (now := (state, hold, phase, idle, *codes)):
            self._last = now
            count = "-" if in_flight is None else in_flight
            self.note(f"{state:<9} {hold:<8} {count:>3} in flight  {phase:<14} exit codes {codes[0]} {codes[1]}")

    def note(self, text: str) -> None:
        """Add a line with the time since the start."""
        self.lines.append(f"{time.monotonic() - self._began:7.3f} s  {text}")

    async def _in_flight(self) -> int | None:
        _, metrics = await self.pod.get("/metrics")
        for line in metrics.splitlines():
            if line.startswith(b"wings_requests_in_flight "):
                return int(float(line.split()[1]))
        return None


Order = Callable[[Pod, Timeline], Awaitable[None]]


async def terminate(container: Container, timeline: Timeline, *, after: float = 0.0) -> None:
    await asyncio.sleep(after)
    timeline.note(f"SIGTERM to the {container.name}")
    code = await container.terminate(GRACE_SECONDS)
    timeline.note(f"the {container.name} has ended with {code}")


async def engine_first(pod: Pod, timeline: Timeline) -> None:
    """A plain pod: the kubelet's signals come in any order, and not at once."""
    await asyncio.gather(terminate(pod.engine, timeline), terminate(pod.sidecar, timeline, after=0.3))


async def sidecar_first(pod: Pod, timeline: Timeline) -> None:
    """The other way round."""
    await asyncio.gather(terminate(pod.sidecar, timeline), terminate(pod.engine, timeline, after=0.3))


async def both_at_once(pod: Pod, timeline: Timeline) -> None:
    """A plain pod at its best."""
    await asyncio.gather(terminate(pod.engine, timeline), terminate(pod.sidecar, timeline))


async def native_sidecar(pod: Pod, timeline: Timeline) -> None:
    """SIGTERM to the sidecar only when the engine's container is gone."""
    await terminate(pod.engine, timeline)
    await terminate(pod.sidecar, timeline)


@asynccontextmanager
async def running_task(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run something beside the block; what it raises is raised."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def roll_out(load: Load, orders: Sequence[Order]) -> None:
    """Replace the stack once in each of these orders; fail if a single stream was not whole."""
    service = Service()
    async with (
        AsyncExitStack() as pods,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        ) as session,
        running_task(service.follow(), "service"),
    ):
        crowd = Crowd(load, service, session)
        old = await pods.enter_async_context(load.new_pod())
        await old.start()
        await old.until_state("ready")
        service.pods = [old]
        clients = [asyncio.create_task(crowd.stay(number), name=f"client {number}") for number in range(load.clients)]
        await crowd.until_open()
        for number, order in enumerate(orders, 1):
            new = await pods.enter_async_context(load.new_pod())
            await new.start()
            await new.until_state("ready")
            service.pods = [old, new]
            await crowd.until_open()
            timeline = Timeline(old)
            async with running_task(timeline.record(), "timeline"):
                timeline.note(f"rollout {number}, {order.__name__}: {crowd.open} streams open")
                await order(old, timeline)
                await asyncio.gather(old.engine.settled(), old.sidecar.settled())
            print("\n".join(["", *timeline.lines]))
            assert [end.code for end in (*old.engine.exits, *old.sidecar.exits)] == [0, 0], old.story()
            old.assert_clean()
            service.pods = [new]
            old = new
        crowd.leaving = True
        await asyncio.gather(*clients)
    print(f"{' '.join(order.__name__ for order in orders)}: {dict(crowd.verdicts)}")
    assert crowd.bad == []
    assert crowd.verdicts[Verdict.WHOLE] > len(orders) * load.open_streams


ORDERS = [engine_first, sidecar_first, both_at_once, native_sidecar]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
async def test_no_stream_is_lost(order: Order) -> None:
    def new_pod() -> Pod:
        return Pod(
            engine={"token_seconds": TOKEN_SECONDS, "first_token_seconds": 0.1},
            WINGS_QUIET_SECONDS=f"{QUIET_SECONDS:g}",
            WINGS_DRAIN_SECONDS="60",
            WINGS_ACCESS_LOG="false",
        )

    await roll_out(Load(new_pod, FAKE, clients=60, open_streams=50, tokens=20), [order] * ROLLOUTS)


@pytest.mark.engine
@pytest.mark.timeout(400)
async def test_no_stream_of_llama_cpp_is_lost() -> None:
    """Twice as many streams as it has slots: half of them wait in the engine when the stack is told to stop."""
    model = await real_model()

    def new_pod() -> Pod:
        return llama_pod(
            model, WINGS_QUIET_SECONDS=f"{QUIET_SECONDS:g}", WINGS_DRAIN_SECONDS="60", WINGS_ACCESS_LOG="false"
        )

    await roll_out(Load(new_pod, NUMBERED, clients=2 * SLOTS, open_streams=2 * SLOTS, tokens=16), ORDERS)
