"""Anything may be killed, stopped or asked to end at any moment: in the end the pod is ready again by itself.

A seed decides everything that a test can decide. `WINGS_SOAK_SEEDS=200` runs that many; `WINGS_SOAK_SEED=17` runs that
one again and tells what it did.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.pod import Pod
from tests.stream_client import Verdict, stream
from wings_proxy.handover.engine_status import Phase

SEEDS = int(os.environ.get("WINGS_SOAK_SEEDS", "30"))
FIRST_SEED = int(os.environ.get("WINGS_SOAK_SEED", "-1"))
# Pods at once: two processors, and a pod that starts keeps one busy.
AT_ONCE = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_factories=["asyncio"]),
    pytest.mark.timeout(120 + 10 * SEEDS),
]


@dataclass
class Mischief:
    """What one seed does to its pod."""

    pod: Pod
    chance: random.Random
    deeds: list[str] = field(default_factory=list)
    # Whom the last deed ends, or makes end.
    doomed: set[int] = field(default_factory=set)
    # How often the engine's container was struck by something that may end it.
    engine_struck: int = 0

    async def do(self) -> None:
        """One deed: to whom, and what."""
        deeds: list[Callable[[], Iterable[int | None]]] = [self.sidecar, self.leader, self.script, self.everything]
        victims = self.chance.choice(deeds)
        number = self.chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        self.deeds.append(f"{number.name} to {victims.__name__}")
        pids = [pid for pid in victims() if pid is not None]
        if victims != self.sidecar and number != signal.SIGSTOP:
            self.engine_struck += 1
        self.doomed = set() if number == signal.SIGSTOP else set(pids)
        send(pids, number)
        if number == signal.SIGSTOP:
            await asyncio.sleep(self.chance.uniform(0.05, 1.5))
            send(pids, signal.SIGCONT)

    def is_done(self) -> bool:
        return self.doomed.isdisjoint(self.everything())

    def sidecar(self) -> Iterable[int | None]:
        return [self.pod.sidecar.pid]

    def leader(self) -> Iterable[int | None]:
        return [self.pod.leader]

    def script(self) -> Iterable[int | None]:
        return [self.pod.engine.pid]

    def everything(self) -> Iterable[int | None]:
        return [*self.pod.sidecar.processes(), *self.pod.engine.processes()]


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def keep_asking(pod: Pod) -> None:
    """Somebody always streams, so that there is a hold and something to drain; what becomes of it is not judged."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        while True:
            await stream(session, pod.url, 20)
            await asyncio.sleep(0.05)


async def one_seed(seed: int) -> None:
    chance = random.Random(seed)
    loop = chance.choice(["uvloop", "asyncio"])
    switches = {"boot_seconds": chance.choice([0, 0.2, 0.8]), "token_seconds": 0.02, "children": chance.choice([0, 1])}
    async with Pod(engine=switches, WINGS_EVENT_LOOP=loop, WINGS_DRAIN_SECONDS="1") as pod:
        mischief = Mischief(pod, chance)
        first, second = chance.sample([pod.sidecar, pod.engine], 2)
        first.start()
        await asyncio.sleep(chance.uniform(0, 0.5))
        second.start()
        asking = asyncio.create_task(keep_asking(pod), name=f"client of seed {seed}")
        try:
            for _ in range(chance.randint(2, 6)):
                await asyncio.sleep(chance.choice([0.02, 0.3, 0.8, 1.5]) * chance.random() * 2)
                await mischief.do()
            asking.cancel()
            # The last deed has to be noticed by whom it was done to.
            await pod.sidecar.until(mischief.is_done, 40)
            await asyncio.sleep(0.5)
            await converges(pod)
            assert pod.engine.starts <= 1 + mischief.engine_struck, "an engine was restarted that nobody had struck"
            pod.assert_clean()
        except BaseException as error:
            error.add_note(f"seed {seed} ({loop}, {switches}): {'; '.join(mischief.deeds)}")
            raise
        finally:
            asking.cancel()
            await asyncio.wait({asking})
    print(f"seed {seed}: {'; '.join(mischief.deeds)}; engine starts {pod.engine.starts}")


async def converges(pod: Pod) -> None:
    """Ready, with the run that is on, and a request gets through; and it stays so."""

    def settled(health: dict[str, object]) -> bool:
        status = pod.status
        its_run = status is not None and status.phase is Phase.RUNNING and health.get("run") == status.run
        return its_run and health["state"] == "ready" and pod.leader is not None

    await pod.until(settled, 50)
    async with aiohttp.ClientSession() as session:
        answer = await stream(session, pod.url, 5)
    health = await pod.health()
    assert answer.verdict is Verdict.WHOLE, f"{answer}\n{pod.story()}"
    engine, starts = pod.leader, (pod.sidecar.starts, pod.engine.starts)
    await asyncio.sleep(0.5)
    assert (await pod.health())["state"] == "ready", f"{health}\n{pod.story()}"
    assert (pod.leader, pod.sidecar.starts, pod.engine.starts) == (engine, *starts), pod.story()


async def test_it_converges_to_ready() -> None:
    seeds = [FIRST_SEED] if FIRST_SEED >= 0 else range(SEEDS)
    turn = asyncio.Semaphore(AT_ONCE)

    async def in_turn(seed: int) -> None:
        async with turn:
            await one_seed(seed)

    ends = await asyncio.gather(*(in_turn(seed) for seed in seeds), return_exceptions=True)
    failures = [end for end in ends if isinstance(end, BaseException)]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(ends)} seeds", failures)
