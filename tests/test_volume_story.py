"""Any sequence of what can happen on the volume, through the real reader, door and lifecycle.

A model knows the truth: which script runs, which engine answers. Files are really written as the launch script and
strangers would, and read by the code that reads them in production; no process is started. Whatever happened, once it
is over the state must say what the model knows.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.examples import examples
from wings_proxy.handover import volume as volume_module
from wings_proxy.handover.alive_fifo import FileIdentity
from wings_proxy.handover.engine_status import EngineStatus
from wings_proxy.handover.launch import LaunchSpec, render
from wings_proxy.handover.volume import Volume, VolumeError, VolumeSample, watch
from wings_proxy.lifecycle.gate import VolumeGate
from wings_proxy.lifecycle.machine import Effect, Lifecycle
from wings_proxy.lifecycle.state import Outcome, ProbeResult, Rules, State, Transition

RULES = Rules(
    probe_failures=3, probe_successes=1, startup_timeout=300, quiet=5, drain=60, engine_kill=120, load_kill=None
)
SCRIPTS = [render(LaunchSpec(("engine", name), (), 70, 30)) for name in ("a", "b")]
T = TypeVar("T")


class CountedVolume(Volume):
    """Counts the looks, so that a test knows when one began and ended after what it did."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.looks = 0

    def look(self) -> tuple[EngineStatus | None, FileIdentity | None]:
        seen = super().look()
        self.looks += 1
        return seen


class Story(RuleBasedStateMachine):
    """The engine's container and the network on one side, the sidecar's own parts on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.path = self.root / "volume"
        self.path.mkdir()
        self.loop = asyncio.new_event_loop()
        # The truth.
        self.run: str | None = None  # whose script runs
        self.started = 0
        self.stopping = False
        self.answers = False  # whether an engine answers, be it the script's or one started by hand
        self.alive: int | None = None
        self.away = False
        self.garbled = False  # what lies there is not what the script said last
        # The last run ended without a word, and without a FIFO or a status to see it by.
        self.unseen_end = False
        # The volume was away as the run began: the FIFO that lies there is a dead one of an earlier run.
        self.unseen_start = False
        self.by_hand = False  # the engine that answers, or answered, is nobody's run
        # The sidecar.
        self.now = 100.0
        self.in_flight = 0
        self.left = False
        self.script = SCRIPTS[0]
        self.probing: int | None = None
        self.volume = CountedVolume(self.path)
        self.lifecycle = Lifecycle(RULES, self.now)
        self.gate = VolumeGate(
            self.volume,
            snapshot=lambda: self.lifecycle.snapshot,
            clock=lambda: self.now,
            hold_taken=lambda epoch: self.lifecycle.hold_taken(epoch),
        )
        self.samples: list[VolumeSample] = []
        self.watching = self.loop.create_task(watch(self.volume, self.samples.append, poll_seconds=0.0005))

    def teardown(self) -> None:
        try:
            self.mend()
            self.converge()
        finally:
            self.close()

    def close(self) -> None:
        self.watching.cancel()
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.watching)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        if self.alive is not None:
            os.close(self.alive)
        shutil.rmtree(self.root)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def perform(self, effects: list[Transition | Effect]) -> None:
        for effect in effects:
            if effect is Effect.RELEASE_HOLD:
                self.do(self.gate.release())
            elif effect is Effect.LEAVE:
                self.left = True

    def passed(self) -> None:
        self.perform(self.lifecycle.passed(self.now, self.in_flight))

    # The engine's container: what the launch script does, in its order.

    def tell(self, phase: str, *, asked: bool = False, code: int | None = None) -> None:
        self.garbled = True
        with suppress(OSError):  # a volume that is gone costs the script its words, not its life
            status = {
                "run": self.run,
                "generation": self.script.generation,
                "phase": phase,
                "asked": asked,
                "code": code,
                "started": 1,
                "changed": 2,
            }
            new = self.path / ".engine.status.new"
            new.write_text(json.dumps(status) + "\n")
            new.replace(self.path / "engine.status")
            self.garbled = False
            if self.alive is not None:
                os.write(self.alive, b".")

    def close_fifo(self) -> None:
        if self.alive is not None:
            os.close(self.alive)
        self.alive = None

    @precondition(lambda self: self.run is None)
    @rule(fifo=strategies.booleans())
    def the_container_starts(self, fifo: bool) -> None:
        self.run = str(uuid.UUID(int=(self.started << 64) + 1))
        self.started += 1
        self.stopping = self.answers = self.unseen_end = self.by_hand = False
        self.unseen_start = self.away
        with suppress(OSError):
            if fifo:
                new = self.path / f".engine.alive.{self.run}"
                os.mkfifo(new)
                self.alive = os.open(new, os.O_RDWR | os.O_NONBLOCK)
                new.replace(self.path / "engine.alive")
            else:
                (self.path / "engine.alive").unlink(missing_ok=True)
        self.tell("running")

    @precondition(lambda self: self.run is not None or self.started == 0)
    @rule()
    def an_engine_answers(self) -> None:
        self.answers = True
        self.by_hand = self.run is None

    @rule()
    def an_engine_hangs(self) -> None:
        self.answers = False

    @precondition(lambda self: self.run is None)
    @rule()
    def somebody_starts_an_engine_by_hand(self) -> None:
        self.answers = self.by_hand = True

    @precondition(lambda self: self.run is not None and not self.stopping)
    @rule()
    def a_stop_is_asked_for(self) -> None:
        self.stopping = True
        self.tell("stop_requested", asked=True)

    @precondition(lambda self: self.run is not None)
    @rule(code=strategies.sampled_from([0, 1, 137, 143]))
    def the_engine_ends(self, code: int) -> None:
        self.answers = False
        self.tell("exited", asked=self.stopping, code=code)
        self.unseen_end = self.garbled
        self.run = None
        self.close_fifo()

    @precondition(lambda self: self.run is not None)
    @rule()
    def the_container_is_killed(self) -> None:
        self.unseen_end = self.alive is None or self.garbled
        self.answers = False
        self.run = None
        self.close_fifo()

    # Strangers.

    @precondition(lambda self: not self.away and self.started > 1)
    @rule()
    def the_volume_vanishes(self) -> None:
        self.path.rename(self.root / "away")
        self.away = True

    @precondition(lambda self: self.away)
    @rule()
    def the_volume_returns(self) -> None:
        (self.root / "away").rename(self.path)
        self.away = False

    @precondition(lambda self: not self.away)
    @rule(data=strategies.binary(max_size=40) | strategies.sampled_from([b"{}", b"null", b'{"run": 1}']))
    def somebody_writes_over_the_status(self, data: bytes) -> None:
        with suppress(OSError):
            (self.path / "engine.status").write_bytes(data)
            self.garbled = True
            self.unseen_end = self.unseen_end or self.run is None

    # The sidecar.

    @initialize()
    def the_sidecar_starts(self) -> None:
        self.do(self.gate.discard())

    @rule(script=strategies.sampled_from(SCRIPTS))
    def the_script_is_published(self, script: Any) -> None:
        try:
            self.do(self.volume.publish(script))
        except VolumeError as error:
            self.lifecycle.publish_failed(error.reason, error.detail)
        else:
            self.script = script
            self.perform(self.lifecycle.published(script.generation, self.now))
        self.passed()

    @rule()
    def the_volume_is_looked_at(self) -> None:
        async def look_twice() -> None:
            # The first of the two may have begun before what happened last.
            wanted = self.volume.looks + 2
            while self.volume.looks < wanted:
                assert not self.watching.done()
                await asyncio.sleep(0.0002)
            await asyncio.sleep(0)

        self.do(look_twice())
        for sample in self.samples:
            self.perform(self.lifecycle.sampled(sample.status, alive=sample.alive, now=self.now))
        self.samples.clear()
        self.passed()

    @rule()
    def a_probe_begins(self) -> None:
        self.probing = self.lifecycle.snapshot.epoch

    @precondition(lambda self: self.probing is not None)
    @rule(busy=strategies.booleans())
    def a_probe_ends(self, busy: bool) -> None:
        assert self.probing is not None
        outcome = Outcome.HEALTHY if self.answers else Outcome.REFUSED
        result = ProbeResult(self.probing, self.now, outcome)
        self.probing = None
        self.perform(self.lifecycle.probed(result, self.now, busy=busy and self.in_flight > 0))
        self.passed()

    @rule()
    def a_client_asks(self) -> None:
        if self.gate.open:
            self.in_flight += 1
        elif self.do(self.gate.admit()) is None:
            self.in_flight += 1
            run = self.lifecycle.snapshot.holdable_run
            # The hold is there, unless the volume is not.
            if run is not None and not self.away:
                assert (self.path / "hold").read_text() == f"{run}\n"
            # And the script, if there is one, has not been asked to stop: it would have looked for the hold already.
            assert run is None or self.garbled or self.away or run != self.run or not self.stopping
        self.passed()

    @precondition(lambda self: self.in_flight > 0)
    @rule()
    def an_answer_ends(self) -> None:
        self.in_flight -= 1
        self.passed()

    @rule(seconds=strategies.sampled_from([0.1, 5.0, 61.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.passed()

    @precondition(lambda self: self.started > 2)
    @rule()
    def the_sidecar_is_asked_to_leave(self) -> None:
        # Late in a story: nothing comes after it.
        self.perform(self.lifecycle.drain(self.now))
        self.passed()

    @invariant()
    def who_may_leave_holds_nobody(self) -> None:
        if self.left and not self.away:
            assert not (self.path / "hold").exists()

    # The end of every story.

    def mend(self) -> None:
        if self.away:
            self.the_volume_returns()
        if self.run is not None:
            self.tell("stop_requested" if self.stopping else "running", asked=self.stopping)

    def converge(self) -> None:
        """Let everything that is under way come to its end, and compare."""
        self.in_flight = 0
        for _ in range(4):
            self.the_volume_is_looked_at()
            self.a_probe_begins()
            self.a_probe_ends(busy=False)
            self.now += 61.0
            self.passed()
        snapshot = self.lifecycle.snapshot
        truth = (self.run, self.stopping, self.answers)
        if snapshot.state is State.DRAINING:
            assert self.left, truth
        elif not self.answers:
            assert not snapshot.healthy, (truth, snapshot)
            if self.run is None and not self.unseen_end and not self.by_hand:
                assert snapshot.state in (State.WAITING, State.STARTING, State.FAILED), (truth, snapshot)
        elif self.run is not None and self.stopping:
            # Of a script whose FIFO is dead nobody can know that it is there; what answers is taken for an engine.
            assert snapshot.state is State.STOPPING or self.unseen_start, (truth, snapshot)
        elif self.unseen_end and snapshot.state is State.STOPPING:
            pass
        else:
            assert snapshot.state is State.READY, (truth, snapshot)
            assert self.do(self.gate.admit()) is None, (truth, snapshot)
        if snapshot.state is not State.READY:
            # One that names an earlier run, whose end nobody saw, keeps nobody.
            assert self.run is None or self.held() != self.run

    def held(self) -> str | None:
        return self.do(self.volume.read_hold())


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_module, "_SHORTEST_PAUSE_SECONDS", 0.0)


Story.TestCase.settings = settings(
    max_examples=examples(),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TestStory = Story.TestCase
TestStory.pytestmark = [pytest.mark.timeout(900)]  # type: ignore[attr-defined]
