"""The one background task: sole owner of the engine's state.

Its children (publisher, volume watch, prober, log tail) only send it facts; it asks the lifecycle what follows, does
it, and everyone else reads the snapshot. When it ends unasked the process ends: without it the rest would answer from
memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

from wings_proxy.config_drift import ConfigFile, ConfigFileSeen, watch_config_file
from wings_proxy.engines.base import LoadPhase
from wings_proxy.gate import VolumeGate
from wings_proxy.inflight import Inflight
from wings_proxy.launch import Script
from wings_proxy.lifecycle import Effect, Failure, Lifecycle, Outcome, ProbeResult, Rules, Snapshot, State, Transition
from wings_proxy.log_tail import LogAdvanced, tail_load_phases
from wings_proxy.probe import Prober
from wings_proxy.upstream import Pool
from wings_proxy.volume import LOG_NAME, Volume, VolumeError, VolumeSample, watch

_log = logging.getLogger(__name__)

# /livez fails when the supervisor has not come round for 10 s; it does so at least this often.
_HEARTBEAT_SECONDS: Final = 2.0
# A volume that is full or not there yet: soon at first, then once in a while.
_PUBLISH_BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
# A volume may lose the script, or somebody may change it; what lies there unchanged is not written again.
_REPUBLISH_SECONDS: Final = 5.0
# A volume that hangs must keep neither the state from changing nor the process from ending.
_VOLUME_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Published:
    """The launch script lies on the volume; `written` is False where the same bytes already did."""

    generation: str
    written: bool


@dataclass(frozen=True, slots=True)
class PublishFailed:
    """It could not be written."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class HoldTaken:
    """Requests of this epoch are protected by the hold."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """The process was asked to stop."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The last request in flight ended."""


Fact = (
    Published
    | PublishFailed
    | VolumeSample
    | ProbeResult
    | LogAdvanced
    | ConfigFileSeen
    | HoldTaken
    | DrainAsked
    | Idle
)


class Supervisor:
    """Owns the lifecycle. `run` ends when the sidecar may leave; nothing else writes the snapshot."""

    def __init__(
        self,
        *,
        rules: Rules,
        script: Script,
        volume: Volume,
        pool: Pool,
        inflight: Inflight,
        prober: Prober,
        load_phases: Sequence[LoadPhase],
        clock: Callable[[], float],
        on_transition: Callable[[Transition, Snapshot], None],
        config_file: ConfigFile | None = None,
    ) -> None:
        self._script = script
        self._volume = volume
        self._pool = pool
        self._inflight = inflight
        self._prober = prober
        self._load_phases = load_phases
        self._clock = clock
        self._on_transition = on_transition
        self._config_file = config_file
        self._lifecycle = Lifecycle(rules, clock())
        self._facts: asyncio.Queue[Fact] = asyncio.Queue()
        self._sampled = asyncio.Event()
        self._look = asyncio.Event()
        self._leaving = self._awaiting_idle = self._drift_told = False
        self._complaint: PublishFailed | None = None
        self._failure_told: Failure | None = None
        self.came_round_at = clock()
        self.gate = VolumeGate(
            volume,
            snapshot=lambda: self.snapshot,
            clock=clock,
            hold_taken=lambda epoch: self._facts.put_nowait(HoldTaken(epoch)),
        )

    @property
    def snapshot(self) -> Snapshot:
        """The state as of now."""
        return self._lifecycle.snapshot

    def drain(self) -> None:
        """Ask for the end; `run` returns when the requests in flight are done or out of time."""
        self._facts.put_nowait(DrainAsked())

    async def run(self) -> None:
        """Supervise until drained. Raises what a child raises: then the process must end."""
        await self._remove_hold(self.gate.discard())
        async with asyncio.TaskGroup() as group:
            children = [
                group.create_task(self._publish(), name="publisher"),
                group.create_task(watch(self._volume, self._facts.put_nowait, ring=self._look), name="volume watch"),
                group.create_task(self._probe(), name="prober"),
                group.create_task(self._tail(), name="log tail"),
            ]
            if self._config_file is not None:
                watching = watch_config_file(self._config_file, self._facts.put_nowait)
                children.append(group.create_task(watching, name="configuration file watch"))
            while not self._leaving:
                fact = await self._next_fact()
                now = self.came_round_at = self._clock()
                if fact is not None:
                    await self._look_before_ready(fact, now)
                    await self._perform(self._learn(fact, now))
                    self._tell_drift()
                await self._perform(self._lifecycle.passed(now, self._inflight.count))
                self._tell_failure()
                if self._inflight.count and not self.snapshot.accepting and not self._awaiting_idle:
                    self._awaiting_idle = True
                    children.append(group.create_task(self._await_idle(), name="wait for requests in flight"))
            for child in children:
                child.cancel()
        # Also a hold taken while the end was being decided.
        await self._remove_hold(self.gate.release())

    async def _next_fact(self) -> Fact | None:
        deadline = self._lifecycle.deadline
        wait = _HEARTBEAT_SECONDS if deadline is None else min(_HEARTBEAT_SECONDS, deadline - self._clock())
        try:
            async with asyncio.timeout(max(wait, 0.0)):
                return await self._facts.get()
        except TimeoutError:
            return None

    async def _look_before_ready(self, fact: Fact, now: float) -> None:
        """Learn of a run the watch has not seen yet before its first healthy answer opens the door.

        The watch looks twice a second, and an engine that loads nothing answers sooner: its first requests would be
        let through without a hold, as those of an engine that was started by hand.
        """
        answers = isinstance(fact, ProbeResult) and fact.outcome is Outcome.HEALTHY
        if not answers or self.snapshot.healthy or self.snapshot.state is State.DRAINING:
            return
        try:
            async with asyncio.timeout(_VOLUME_SECONDS):
                status = await self._volume.read_status()
        except TimeoutError:
            return
        if status is not None and status.run != self.snapshot.run:
            await self._perform(self._learn(VolumeSample(status, alive=None), now))
            # The watch has not seen it yet, and from here on an end of it must be noticed.
            self._look.set()

    def _learn(self, fact: Fact, now: float) -> list[Transition | Effect]:
        match fact:
            case Published(generation, written):
                self._complaint = None
                word = "published" if written else "already published"
                _log.info("launch script %s", word, extra={"fields": {"generation": generation}})
                return self._lifecycle.published(generation, now)
            case PublishFailed(reason, detail):
                if fact != self._complaint:
                    # Once for each cause, not once for each attempt.
                    self._complaint = fact
                    where = "cannot publish the launch script in SHARED_VOLUME_PATH, trying again: %s"
                    _log.error(where, detail, extra={"fields": {"reason": reason}})
                self._lifecycle.publish_failed(reason, detail)
                return []
            case VolumeSample(status, alive):
                effects = self._lifecycle.sampled(status, alive=alive, now=now)
                self._sampled.set()
                return effects
            case ProbeResult():
                return self._lifecycle.probed(fact, now, busy=self._inflight.last_byte >= fact.began)
            case LogAdvanced(epoch, progress):
                self._lifecycle.advanced(epoch, progress, now)
                return []
            case ConfigFileSeen(changed):
                if changed:
                    _log.warning("drift: the configuration file has changed; it is read when the sidecar next starts")
                else:
                    _log.info("the configuration file is again what was read at the start")
                self._lifecycle.config_file_seen(changed=changed)
                return []
            case HoldTaken(epoch):
                self._lifecycle.hold_taken(epoch)
                return []
            case DrainAsked():
                return self._lifecycle.drain(now)
            case Idle():
                self._awaiting_idle = False
                return []

    def _tell_drift(self) -> None:
        snapshot = self.snapshot
        if snapshot.script_drifted and not self._drift_told:
            _log.warning(
                "drift: the engine runs another launch script than was published; its next start takes that one",
                extra={"fields": {"running": snapshot.generation, "published": snapshot.published_generation}},
            )
        self._drift_told = snapshot.script_drifted

    def _tell_failure(self) -> None:
        """Of every state: an engine may also fail when it has failed before, or while we leave."""
        failure = self.snapshot.last_failure
        if failure is not None and failure is not self._failure_told:
            fields = {"reason": failure.reason, "exit_code": failure.code, "run": self.snapshot.run}
            _log.error("engine failed: %s", failure.detail, extra={"fields": fields})
        self._failure_told = failure

    async def _perform(self, effects: list[Transition | Effect]) -> None:
        for effect in effects:
            match effect:
                case Transition():
                    self._on_transition(effect, self.snapshot)
                case Effect.EMPTY_POOL:
                    self._pool.drop_idle()
                case Effect.PROBE_SOON:
                    self._prober.soon()
                case Effect.RELEASE_HOLD:
                    await self._remove_hold(self.gate.release())
                case Effect.LEAVE:
                    self._leaving = True

    async def _remove_hold(self, removal: Coroutine[None, None, None]) -> None:
        try:
            async with asyncio.timeout(_VOLUME_SECONDS):
                await removal
        except TimeoutError:
            _log.error("the shared volume hangs: the hold could not be removed")

    async def _await_idle(self) -> None:
        await self._inflight.drained()
        self._facts.put_nowait(Idle())

    async def _publish(self) -> None:
        failures, lies_there = 0, False
        while True:
            try:
                written = await self._volume.publish(self._script)
            except VolumeError as error:
                self._facts.put_nowait(PublishFailed(error.reason, error.detail))
                await asyncio.sleep(_PUBLISH_BACKOFF_SECONDS[min(failures, len(_PUBLISH_BACKOFF_SECONDS) - 1)])
                failures, lies_there = failures + 1, False
            else:
                if written or not lies_there:
                    self._facts.put_nowait(Published(self._script.generation, written))
                failures, lies_there = 0, True
                await asyncio.sleep(_REPUBLISH_SECONDS)

    async def _tail(self) -> None:
        await tail_load_phases(
            self._volume.path / LOG_NAME,
            self._load_phases,
            epoch=lambda: self.snapshot.epoch,
            loading=lambda: self.snapshot.state is State.LOADING,
            emit=self._facts.put_nowait,
        )

    async def _probe(self) -> None:
        # What the volume says of the run comes first: an adopted engine is ready after one probe, and stays so.
        await self._sampled.wait()
        await self._prober.run(
            lambda: self.snapshot.epoch, lambda: self.snapshot.state is State.READY, self._facts.put_nowait
        )
