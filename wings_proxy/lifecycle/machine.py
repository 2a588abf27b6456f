"""One engine's life: facts in (a probe's result, a sample of the shared volume, the passing of time), what follows out.

`Lifecycle` applies the table of `lifecycle.state`, and nothing else decides a transition: no I/O, no clock, no task.
The supervisor tells it the facts and does what follows.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import Final

from wings_proxy.engines.failure_reasons import Diagnosis, Reason, diagnose
from wings_proxy.handover.engine_status import EngineStatus, Phase
from wings_proxy.handover.sidecar_record import SidecarRecord
from wings_proxy.lifecycle.stall import Moved, Stalled
from wings_proxy.lifecycle.state import (
    TABLE,
    Cell,
    Event,
    Failure,
    Outcome,
    ProbeResult,
    Progress,
    Rules,
    Snapshot,
    State,
    Transition,
)


class Effect(enum.Enum):
    """What the supervisor has to do, besides announcing transitions."""

    RELEASE_HOLD = enum.auto()
    EMPTY_POOL = enum.auto()  # the connections lead to a process that is gone
    PROBE_SOON = enum.auto()
    LEAVE = enum.auto()  # drained: the process may end


_STARTING_DETAIL: Final = "the engine container has not run the script yet"


class Lifecycle:
    """The state of one engine. Every method takes facts and returns what follows; nothing else changes it."""

    def __init__(self, rules: Rules, now: float) -> None:
        self._rules = rules
        self.snapshot = Snapshot(State.WAITING, now, "not_published", "the launch script is not on the volume yet")
        self._first_sample = True
        self._served_run: str | None = None
        self._remembered: SidecarRecord | None = None
        self._stalled = False
        self._load_seconds: dict[str, float] = {}
        self._good = self._bad = self._refused = 0
        self._progress_at = now
        self._held = False
        self._refuse_at: float | None = None
        self._left = False

    # -- facts ---------------------------------------------------------------------------------------------------

    def found_hold(self, run: str) -> None:
        """An earlier process of this sidecar forwarded requests to this run: it was ready once."""
        self._served_run = run

    def found_record(self, record: SidecarRecord, now: float) -> None:
        """An earlier process of this sidecar left word of the run it knew. Anybody may have written it."""
        if record.began is not None and record.began > now:
            return
        self._remembered = record
        if record.loaded_generation is not None and record.load_seconds is not None:
            self._load_seconds = {record.loaded_generation: record.load_seconds}

    @property
    def record(self) -> SidecarRecord | None:
        """What the next process of this sidecar should know; None while there is no run."""
        snapshot = self.snapshot
        if snapshot.run is None or snapshot.generation is None or snapshot.run_over:
            return None
        loaded, seconds = next(iter(self._load_seconds.items()), (None, None))
        return SidecarRecord(
            snapshot.run, snapshot.generation, snapshot.ready_in_run, snapshot.load_began, loaded, seconds
        )

    def published(self, generation: str, now: float) -> list[Transition | Effect]:
        """The launch script of this generation lies on the volume."""
        self._update(published_generation=generation)
        reason, detail = "engine_not_started", _STARTING_DETAIL
        if self.snapshot.state is State.STARTING:
            self._update(reason=reason, detail=detail)
        return self._fire(Event.PUBLISHED, now, reason, detail)

    def publish_failed(self, reason: str, detail: str) -> None:
        """The launch script could not be written; not an event of the engine, only a better reason to wait."""
        if self.snapshot.state in (State.WAITING, State.STARTING):
            self._update(reason=reason, detail=detail)

    def config_file_seen(self, *, changed: bool) -> None:
        """The configuration file was looked at; for the drift report only."""
        self._update(config_file_changed=changed)

    def sampled(
        self, status: EngineStatus | None, *, alive: bool | None, now: float, why: Diagnosis | None = None
    ) -> list[Transition | Effect]:
        """The volume was read: edges are derived here, since any phase may have come and gone between two looks.

        `alive` tells whether the script of that run still holds its FIFO open; None where nobody can know.
        `why` is what a run that ended unasked said last; without it the exit code decides.
        """
        first, self._first_sample = self._first_sample, False
        if status is None:
            return []
        over = status.phase is Phase.EXITED or alive is False
        effects: list[Transition | Effect] = []
        if status.run != self.snapshot.run:
            self._held = False
            restarts = self.snapshot.restarts + (self.snapshot.run is not None)
            self._update(run=status.run, run_over=False, generation=status.generation, restarts=restarts)
            if first and over:
                # What ended before we came is history, not news.
                self._update(run_over=True, generation=None)
                return []
            effects += self._start_of_run(now)
            # When a run began that was on before us, only who was there before us can know.
            self._update(load_began=now)
            if first:
                self._adopt(status)
        if self.snapshot.run_over:
            return effects
        if status.asked:
            beyond_hope = self._stalled or not self._rules.engine_alive(self.snapshot, now)
            effects += self._fire(Event.STOP_REQUESTED, now, "stop_requested", "the engine was asked to stop")
            if beyond_hope:
                # What it holds will not end; a liveness probe's grace has room for the engine's own stop and no more.
                effects += self._fire(Event.STALLED, now, "stalled", "")
        if over:
            effects += self._end_of_run(status, now, why)
        return effects

    def probed(self, result: ProbeResult, now: float, *, busy: bool) -> list[Transition | Effect]:
        """A health probe ended; `busy` tells that the engine moved bytes of a stream while it was under way."""
        if result.epoch != self.snapshot.epoch:
            return []
        self._update(last_probe=result)
        if result.outcome is Outcome.HEALTHY:
            self._bad = self._refused = 0
            self._good += 1
            if self._good < self._rules.probe_successes:
                return [Effect.PROBE_SOON]
            if self._stalled:
                # It said so all the time.
                return []
            if self.snapshot.state in (State.WAITING, State.STARTING, State.LOADING, State.UNHEALTHY, State.FAILED):
                self._note_load(now)
                self._update(ready_in_run=True, progress=None)
            return self._fire(Event.HEALTHY, now, "", "")
        self._good = 0
        self._note_foreign(result)
        if (busy or result.worked) and result.outcome is not Outcome.REFUSED:
            # A busy engine is slow to say so; its streams speak for it. But somebody listens while it is busy.
            self._bad = self._refused = 0
            return []
        self._bad += 1
        self._refused = self._refused + 1 if result.outcome is Outcome.REFUSED else 0
        if self.snapshot.state is not State.READY and not self._lost_before_us:
            return []
        # Nobody listens: that does not happen to a busy engine, so two looks are enough.
        if self._refused == 1 and self._bad < self._rules.probe_failures:
            return [Effect.PROBE_SOON]
        if self._refused < 2 and self._bad < self._rules.probe_failures:
            return []
        return self._fire(Event.PROBES_FAILED, now, f"probe_{result.outcome}", result.detail)

    def work_seen(self, news: Stalled | Moved, now: float) -> list[Transition | Effect]:
        """The engine holds requests and does no work, whatever its health probe says; or it works again."""
        if news.epoch != self.snapshot.epoch:
            return []
        if isinstance(news, Stalled):
            effects = self._fire(Event.STALLED, now, "stalled", news.detail)
            self._stalled = self.snapshot.state is State.UNHEALTHY
            return effects
        was_stalled, self._stalled = self._stalled, False
        # The next good probe is believed.
        return [Effect.PROBE_SOON] if was_stalled else []

    def advanced(self, epoch: int, progress: Progress | None, now: float) -> None:
        """The engine's log grew; `progress` where a line showed a phase."""
        if epoch != self.snapshot.epoch:
            return
        self._progress_at = now
        if progress is not None and self.snapshot.state is State.LOADING:
            self._update(progress=progress, reason="loading", detail=f"loading: {progress.phase}")

    def hold_taken(self, epoch: int) -> None:
        """Requests of this epoch may be in flight from now on."""
        if epoch == self.snapshot.epoch:
            self._held = True

    def drain(self, now: float) -> list[Transition | Effect]:
        """We were asked to stop."""
        return self._fire(Event.DRAIN, now, "shutting_down", "the sidecar was asked to stop")

    def passed(self, now: float, in_flight: int) -> list[Transition | Effect]:
        """Time passed, or the number of requests in flight changed."""
        snapshot = self.snapshot
        if snapshot.state in (State.STOPPING, State.DRAINING):
            return self._drained(now, in_flight)
        deadline = self.deadline
        if deadline is None or now < deadline:
            return []
        if snapshot.state is State.LOADING:
            detail = f"no progress for {self._rules.startup_timeout:g} s while loading"
            return self._fail(Event.DEADLINE, Failure(Reason.LOAD_TIMEOUT, detail, now), now)
        detail = f"did not recover in {self._rules.startup_timeout:g} s"
        return self._fail(Event.DEADLINE, Failure(Reason.UNRESPONSIVE, detail, now), now)

    @property
    def deadline(self) -> float | None:
        """When `passed` has something to say even if nothing happens, or None."""
        match self.snapshot.state:
            case State.LOADING:
                return self._progress_at + self._rules.startup_timeout
            case State.UNHEALTHY:
                return self.snapshot.since + self._rules.startup_timeout
            case State.STOPPING | State.DRAINING if self._refuse_at is not None:
                if self.snapshot.accepting:
                    return self._refuse_at
                if self._held or (self.snapshot.state is State.DRAINING and not self._left):
                    return self._refuse_at + self._rules.drain
        return None

    @property
    def _lost_before_us(self) -> bool:
        """Whether a run that was ready has not answered since we came: it is not loading, whatever we call it."""
        return self.snapshot.state is State.LOADING and self.snapshot.ready_in_run

    # -- what follows --------------------------------------------------------------------------------------------

    def _start_of_run(self, now: float) -> list[Transition | Effect]:
        self._forget_probes()
        self._progress_at = now
        self._open_again()
        expected = self._load_seconds.get(self.snapshot.generation or "")
        self._update(progress=None, ready_in_run=False, expected_load=expected)
        effects = self._fire(Event.ENGINE_STARTED, now, "loading", "the engine is loading")
        return [Effect.EMPTY_POOL, *effects, Effect.PROBE_SOON]

    def _adopt(self, status: EngineStatus) -> None:
        """Take over what an earlier process of ours knew of the run that is on."""
        known = self._remembered
        if known is not None and (known.run, known.generation) != (status.run, status.generation):
            known = None
        served = status.run == self._served_run or (known is not None and known.ready)
        self._update(load_began=None if known is None else known.began, ready_in_run=served)
        if served:
            self._update(detail="the engine was ready before this sidecar started, and has not answered it yet")

    def _end_of_run(self, status: EngineStatus, now: float, why: Diagnosis | None) -> list[Transition | Effect]:
        self._update(run_over=True)
        self._forget_probes()
        self._held = False
        self._open_again()
        self._update(generation=None, progress=None)
        if status.asked:
            effects = self._fire(Event.ENDED, now, "engine_not_started", "the engine stopped as asked")
        else:
            why = why or diagnose((), (), code=status.code, was_ready=self.snapshot.ready_in_run)
            effects = self._fail(Event.CRASHED, Failure(why.reason, why.detail, now, status.code), now)
        return [Effect.EMPTY_POOL, *effects]

    def _drained(self, now: float, in_flight: int) -> list[Transition | Effect]:
        assert self._refuse_at is not None
        if now >= self._refuse_at and self.snapshot.accepting:
            self._update(accepting=False)
        if self.snapshot.accepting:
            return []
        if in_flight and now < self._refuse_at + self._rules.drain:
            return []
        effects: list[Transition | Effect] = []
        if self.snapshot.state is State.STOPPING and in_flight:
            return self._fire(Event.DEADLINE, now, "", "")
        if self._held:
            self._held = False
            effects.append(Effect.RELEASE_HOLD)
        if self.snapshot.state is State.DRAINING and not self._left:
            self._left = True
            effects.append(Effect.LEAVE)
        return effects

    def _fail(self, event: Event, failure: Failure, now: float) -> list[Transition | Effect]:
        self._update(last_failure=failure)
        if self.snapshot.state is State.FAILED:
            # No news for the table, but what it ended of says more than that it was late before.
            self._update(reason=failure.reason, detail=failure.detail)
        return self._fire(event, now, failure.reason, failure.detail)

    def _open_again(self) -> None:
        """Forget the stop that closed the door: what answers next is another run. Our own stop is never over."""
        if self.snapshot.state is not State.DRAINING:
            self._refuse_at = None
            self._update(accepting=True)

    def _note_load(self, now: float) -> None:
        """Remember how long a load took that was seen from its start, of the newest script alone."""
        snapshot = self.snapshot
        loads = snapshot.state is State.LOADING and not snapshot.ready_in_run
        if loads and snapshot.generation is not None and snapshot.load_began is not None:
            self._load_seconds = {snapshot.generation: now - snapshot.load_began}

    def _note_foreign(self, result: ProbeResult) -> None:
        """Say who answers while the engine does not: it will not get its port."""
        if self.snapshot.state not in (State.STARTING, State.LOADING):
            return
        if result.outcome is Outcome.FOREIGN:
            self._update(reason="foreign_server", detail=result.detail)
        elif self.snapshot.reason == "foreign_server":
            starting = self.snapshot.state is State.STARTING
            reason = "engine_not_started" if starting else "loading"
            self._update(reason=reason, detail=_STARTING_DETAIL if starting else "the engine is loading")

    def _forget_probes(self) -> None:
        self._stalled = False
        self._good = self._bad = self._refused = 0
        self._update(epoch=self.snapshot.epoch + 1, last_probe=None)

    def _update(self, **changes: object) -> None:
        self.snapshot = replace(self.snapshot, **changes)  # type: ignore[arg-type]  # names and types are this class's

    def _fire(self, event: Event, now: float, reason: str, detail: str) -> list[Transition | Effect]:
        """The only door to another state."""
        source = self.snapshot.state
        target = TABLE[source][event]
        if target is Cell.STAY:
            return []
        if target is Cell.RELEASE_HOLD:
            held, self._held = self._held, False
            return [Effect.RELEASE_HOLD] if held else []
        lasted = now - self.snapshot.since
        lost = target in (State.UNHEALTHY, State.FAILED)
        lost_since = None if not lost else now if self.snapshot.lost_since is None else self.snapshot.lost_since
        self._update(state=target, since=now, reason=reason, detail=detail, lost_since=lost_since)
        if target in (State.STOPPING, State.DRAINING) and self._refuse_at is None:
            # Endpoints lag behind: clients come for some seconds yet. Not where none ever came.
            self._refuse_at = now + (self._rules.quiet if self._held else 0.0)
            self._update(accepting=self._held)
        return [Transition(source, event, target, lasted)]
