"""The one background task: sole owner of the engine's state.

Its children (publisher, volume watch, prober, log tail) only send it facts; it asks the lifecycle what follows, does
it, and everyone else reads the snapshot. When it ends unasked the process ends: without it the rest would answer from
memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from wings_proxy.config.drift import ConfigFile, ConfigFileSeen, watch_config_file
from wings_proxy.engines.base import Engine
from wings_proxy.engines.failure_reasons import ADVICE, Diagnosis, diagnose
from wings_proxy.handover.launch import Script
from wings_proxy.handover.volume import LOG_NAME, Volume, VolumeError, VolumeSample, watch
from wings_proxy.lifecycle.engine_log import LineSplitter, LogCounts
from wings_proxy.lifecycle.gate import VolumeGate
from wings_proxy.lifecycle.log_tail import LineReader, LogAdvanced, tail_engine_log
from wings_proxy.lifecycle.machine import Effect, Lifecycle
from wings_proxy.lifecycle.probe import Prober
from wings_proxy.lifecycle.record_keeper import keep_record
from wings_proxy.lifecycle.stall import Counters, Moved, Stalled, StallWatch
from wings_proxy.lifecycle.state import Failure, Outcome, ProbeResult, Rules, Snapshot, State, Transition
from wings_proxy.proxy.inflight import Inflight
from wings_proxy.proxy.upstream import Pool

_log = logging.getLogger(__name__)

# /livez fails when the supervisor has not come round for 10 s; it does so at least this often.
_HEARTBEAT_SECONDS: Final = 2.0
# A volume that is full or not there yet: soon at first, then once in a while.
_PUBLISH_BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
# A volume may lose the script, or somebody may change it; what lies there unchanged is not written again.
_REPUBLISH_SECONDS: Final = 5.0
# A volume that hangs must keep neither the state from changing nor the process from ending.
_VOLUME_SECONDS: Final = 2.0
# Of a log's end that are asked for the reason.
_LAST_LINES: Final = 2000


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
    | Stalled
    | Moved
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
        engine: Engine,
        counters: Callable[[], Awaitable[Counters]],
        ask_for_work: Callable[[], Coroutine[None, None, None]],
        stall: StallWatch | None,
        clock: Callable[[], float],
        on_transition: Callable[[Transition, Snapshot], None],
        on_look: Callable[[Snapshot], None],
        log_reader: LineReader,
        log_counts: LogCounts,
        config_file: ConfigFile | None = None,
    ) -> None:
        self._script = script
        self._volume = volume
        self._pool = pool
        self._inflight = inflight
        self._prober = prober
        self._engine = engine
        self._counters = counters
        self._ask_for_work = ask_for_work
        self._stall = stall
        self._clock = clock
        self._on_transition = on_transition
        self._on_look = on_look
        self._log_reader = log_reader
        self._log_counts = log_counts
        self._config_file = config_file
        self._lifecycle = Lifecycle(rules, clock())
        self._facts: asyncio.Queue[Fact] = asyncio.Queue()
        self._sampled = asyncio.Event()
        self._look = asyncio.Event()
        self._record_due = asyncio.Event()
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
        await self._take_over()
        watching = watch(self._volume, self._facts.put_nowait, ring=self._look)
        keeping = keep_record(self._volume, lambda: self._lifecycle.record, self._record_due)
        try:
            async with asyncio.TaskGroup() as group:
                children = [
                    group.create_task(self._publish(), name="publisher"),
                    group.create_task(watching, name="volume watch"),
                    group.create_task(self._probe(), name="prober"),
                    group.create_task(self._tail(), name="log tail"),
                    group.create_task(keeping, name="record keeper"),
                ]
                if self._stall is not None:
                    children.append(group.create_task(self._watch_stall(self._stall), name="stall watch"))
                if self._config_file is not None:
                    drift = watch_config_file(self._config_file, self._facts.put_nowait)
                    children.append(group.create_task(drift, name="configuration file watch"))
                while not self._leaving:
                    fact = await self._next_fact()
                    now = self.came_round_at = self._clock()
                    if fact is not None:
                        await self._look_before_ready(fact, now)
                        await self._perform(self._learn(fact, now, await self._diagnosis(fact)))
                        self._tell_drift()
                    await self._perform(self._lifecycle.passed(now, self._inflight.count))
                    self._tell_failure()
                    self._on_look(self.snapshot)
                    self._record_due.set()
                    if self._inflight.count and not self.snapshot.accepting and not self._awaiting_idle:
                        self._awaiting_idle = True
                        children.append(group.create_task(self._await_idle(), name="wait for requests in flight"))
                for child in children:
                    child.cancel()
        finally:
            # Also a hold taken while the end was being decided, and at any other end: the streams end with us.
            await self.gate.release()

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

    async def _diagnosis(self, fact: Fact) -> Diagnosis | None:
        """Read why a run ended, if this is the news that one did, unasked."""
        if not isinstance(fact, VolumeSample) or fact.status is None or not fact.over or fact.status.asked:
            return None
        status, snapshot = fact.status, self.snapshot
        same = status.run == snapshot.run
        if same and snapshot.run_over:
            return None
        words = b""
        with contextlib.suppress(TimeoutError):  # the exit code says something too
            async with asyncio.timeout(_VOLUME_SECONDS):
                words = await self._volume.last_words(status.run)
        lines = deque(LineSplitter().feed(words + b"\n"), maxlen=_LAST_LINES)
        was_ready = same and snapshot.ready_in_run
        known = self._engine.failure_lines
        # In a thread, for the lines may be as long as they like and the streams go on.
        return await asyncio.to_thread(diagnose, known, lines, code=status.code, was_ready=was_ready)

    def _learn(self, fact: Fact, now: float, why: Diagnosis | None = None) -> list[Transition | Effect]:
        match fact:
            case Published(generation, written):
                self._complaint = None
                word = "published" if written else "already published"
                _log.info("launch script %s", word, extra={"fields": {"generation": generation}})
                return self._lifecycle.published(generation, now)
            case PublishFailed(reason, detail):
                self._tell_unpublished(fact)
                self._lifecycle.publish_failed(reason, detail)
                return []
            case VolumeSample(status, alive):
                effects = self._lifecycle.sampled(status, alive=alive, now=now, why=why)
                self._sampled.set()
                return effects
            case ProbeResult():
                return self._lifecycle.probed(fact, now, busy=self._inflight.last_work >= fact.began)
            case LogAdvanced(epoch, progress):
                self._lifecycle.advanced(epoch, progress, now)
                return []
            case ConfigFileSeen(changed):
                _tell_config_file(changed=changed)
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
            case Stalled() | Moved():
                return self._lifecycle.work_seen(fact, now)

    def _tell_unpublished(self, fact: PublishFailed) -> None:
        # Once for each cause, not once for each attempt.
        if fact != self._complaint:
            self._complaint = fact
            where = "cannot publish the launch script in SHARED_VOLUME_PATH, trying again: %s"
            _log.error(where, fact.detail, extra={"fields": {"reason": fact.reason}})

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
            hint = ADVICE[failure.reason].hint
            fields = {"reason": failure.reason, "exit_code": failure.code, "run": self.snapshot.run, "hint": hint}
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
                    await self.gate.release()
                case Effect.LEAVE:
                    self._leaving = True

    async def _take_over(self) -> None:
        """Learn what an earlier process of ours left: which run it forwarded to, and what it knew of it."""
        with contextlib.suppress(TimeoutError):  # told below, where it matters
            async with asyncio.timeout(_VOLUME_SECONDS):
                if (run := await self._volume.read_hold()) is not None:
                    self._lifecycle.found_hold(run)
                if (record := await self._volume.read_record()) is not None:
                    self._lifecycle.found_record(record, self._clock())
        await self.gate.discard()

    async def _watch_stall(self, watch: StallWatch) -> None:
        inflight = self._inflight
        async with asyncio.TaskGroup() as group:
            asking: asyncio.Task[None] | None = None
            while True:
                await asyncio.sleep(watch.pause)
                epoch = self.snapshot.epoch
                looks = watch.wants_look(self._clock(), epoch, inflight.silent_since)
                counters = await self._counters() if looks else None
                news = watch.judge(
                    self._clock(),
                    epoch,
                    silent_since=inflight.silent_since,
                    last_byte=inflight.last_work,
                    counters=counters,
                )
                if news is not None:
                    self._facts.put_nowait(news)
                # Clients may have given up for good, so that nothing would ever move again: one request of our own
                # lies with the engine for as long as it is stalled, and moves its counters when it goes on.
                lost = self.snapshot.state in (State.UNHEALTHY, State.FAILED)
                if watch.stalled and lost and (asking is None or asking.done()):
                    asking = group.create_task(self._ask_for_work(), name="request of a stalled engine")

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
        await tail_engine_log(
            self._volume.path / LOG_NAME,
            self._engine.load_phases,
            epoch=lambda: self.snapshot.epoch,
            loading=lambda: self.snapshot.state is State.LOADING,
            emit=self._facts.put_nowait,
            reader=self._log_reader,
            counts=self._log_counts,
            clock=self._clock,
        )

    async def _probe(self) -> None:
        # What the volume says of the run comes first: an adopted engine is ready after one probe, and stays so.
        await self._sampled.wait()
        await self._prober.run(
            lambda: self.snapshot.epoch, lambda: self.snapshot.state is State.READY, self._facts.put_nowait
        )


def _tell_config_file(*, changed: bool) -> None:
    if changed:
        _log.warning("drift: the configuration file has changed; it is read when the sidecar next starts")
    else:
        _log.info("the configuration file is again what was read at the start")
