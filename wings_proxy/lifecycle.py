"""The engine's life as a table: states, events, what leads where, and what each state means to the outside.

Everything that decides a transition is in this file, and nothing else is: no I/O, no clock, no task. Time comes in as
`now`, seconds of any monotonic clock. `Lifecycle` takes facts (a probe's result, a sample of the shared volume, the
passing of time) and returns what follows from them; the supervisor does it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from wings_proxy.engine_status import EngineStatus, Phase


class State(enum.StrEnum):
    """Where the engine is in its life, as far as we can know."""

    WAITING = "waiting"  # our launch script is not on the volume
    STARTING = "starting"  # it is; the engine container has not run it yet
    LOADING = "loading"  # it runs, and does not answer yet
    READY = "ready"
    UNHEALTHY = "unhealthy"  # was ready, does not answer any more, is not known to have ended
    STOPPING = "stopping"  # somebody asked the engine container to stop
    FAILED = "failed"  # it ended unasked, or got nowhere in time
    DRAINING = "draining"  # we were asked to stop; final


class Event(enum.StrEnum):
    """What can happen."""

    PUBLISHED = "published"
    ENGINE_STARTED = "engine_started"
    HEALTHY = "healthy"
    PROBES_FAILED = "probes_failed"
    STALLED = "stalled"
    STOP_REQUESTED = "stop_requested"
    ENDED = "ended"  # after a stop was asked for
    CRASHED = "crashed"  # without
    DEADLINE = "deadline"
    DRAIN = "drain"


class Cell(enum.Enum):
    """A cell of the table that leads nowhere else."""

    STAY = enum.auto()
    RELEASE_HOLD = enum.auto()  # stay, and let the engine container go


# fmt: off
def _table() -> Mapping[State, Mapping[Event, State | Cell]]:
    waiting, starting, loading, ready, unhealthy, stopping, failed, draining = State
    stay, release = Cell
    rows: dict[State, tuple[State | Cell, ...]] = {
        #           published engine_   healthy probes_    stalled    stop_      ended     crashed deadline drain
        #                     started           failed                requested
        waiting:   (starting, loading,  ready,  stay,      stay,      stopping,  stay,     failed, stay,    draining),
        starting:  (stay,     loading,  ready,  stay,      stay,      stopping,  stay,     failed, stay,    draining),
        loading:   (stay,     loading,  ready,  stay,      stay,      stopping,  starting, failed, failed,  draining),
        ready:     (stay,     loading,  stay,   unhealthy, unhealthy, stopping,  starting, failed, stay,    draining),
        unhealthy: (stay,     loading,  ready,  stay,      stay,      stopping,  starting, failed, failed,  draining),
        stopping:  (stay,     loading,  stay,   stay,      release,   stay,      starting, failed, release, draining),
        failed:    (stay,     loading,  ready,  stay,      stay,      stopping,  starting, stay,   stay,    draining),
        draining:  (stay,     stay,     stay,   stay,      stay,      stay,      stay,     stay,   stay,    stay),
    }
    return MappingProxyType(
        {state: MappingProxyType(dict(zip(Event, cells, strict=True))) for state, cells in rows.items()}
    )
# fmt: on


TABLE: Final = _table()


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a state says to the outside."""

    health: str  # the `status` of /health
    healthy: bool  # /health and /readyz: 200, else 503
    forwards: bool  # a client's request goes to the engine


MEANING: Final[Mapping[State, Meaning]] = MappingProxyType(
    {
        State.WAITING: Meaning("starting", healthy=False, forwards=False),
        State.STARTING: Meaning("starting", healthy=False, forwards=False),
        State.LOADING: Meaning("starting", healthy=False, forwards=False),
        State.READY: Meaning("healthy", healthy=True, forwards=True),
        State.UNHEALTHY: Meaning("unhealthy", healthy=False, forwards=True),
        State.FAILED: Meaning("failed", healthy=False, forwards=False),
        # In these two until the quiet period ends, see `Snapshot.forwards`.
        State.STOPPING: Meaning("stopping", healthy=False, forwards=True),
        State.DRAINING: Meaning("draining", healthy=False, forwards=True),
    }
)


class Outcome(enum.StrEnum):
    """How a health probe of the engine ended."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"  # an answer that is not 200
    REFUSED = "refused"
    TIMEOUT = "timeout"
    BROKEN = "broken"  # not HTTP, or cut off
    FOREIGN = "foreign"  # 200, but from something that is not an inference engine


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One health probe: the epoch and the time it began in, how it ended, and one line for a human."""

    epoch: int
    began: float
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the engine has loaded: the newest phase its log showed, and its ratio 0..1 where there is one."""

    phase: str
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the engine ended or got nowhere. `code` is the shell's: 128 + n for signal n."""

    reason: str
    detail: str
    at: float
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state, for everyone who reads it. Only the supervisor replaces it."""

    state: State
    since: float
    reason: str
    detail: str
    # Grows with every start and end of an engine run: what began in another epoch is not about this engine any more.
    epoch: int = 0
    # The newest run the volume told of, and whether its script is gone; what answers then is no run of the script's.
    run: str | None = None
    run_over: bool = False
    generation: str | None = None  # of the script that runs now
    published_generation: str | None = None
    progress: Progress | None = None
    # Of this epoch, whether it counted or not: why an engine does not get ready is often seen here alone.
    last_probe: ProbeResult | None = None
    last_failure: Failure | None = None
    restarts: int = 0
    ready_in_run: bool = False
    # Since when the engine has been unhealthy or failed, or None: the one state may follow the other.
    lost_since: float | None = None
    # False once the quiet period of a stop is over.
    accepting: bool = True
    # The configuration file is not what this process read any more.
    config_file_changed: bool = False

    @property
    def meaning(self) -> Meaning:
        """What the state says to the outside."""
        return MEANING[self.state]

    @property
    def forwards(self) -> bool:
        """Whether a client's request may go to the engine now."""
        return self.accepting and self.meaning.forwards

    @property
    def healthy(self) -> bool:
        """What /health and /readyz answer."""
        return self.meaning.healthy

    def retry_after(self, now: float) -> int:
        """Seconds after which a refused client should come again: 1 to 60, from the load's progress if it shows."""
        match self.state:
            case State.LOADING if self.progress is not None and self.progress.ratio:
                remaining = (now - self.since) * (1 - self.progress.ratio) / self.progress.ratio
                return max(1, min(60, math.ceil(remaining)))
            case State.STOPPING | State.DRAINING:
                return 1  # another pod takes it
            case State.FAILED:
                return 15  # the kubelet backs off 10 s and more between restarts
            case _:
                return 5

    @property
    def holdable_run(self) -> str | None:
        """The run that is on, whose script will look for the hold; None for an engine that was started by hand."""
        return None if self.run_over else self.run

    @property
    def script_drifted(self) -> bool:
        """Whether the engine runs another script than the one we published: it will take ours when it next starts."""
        return None not in (self.generation, self.published_generation) and self.generation != self.published_generation

    @property
    def drifted(self) -> bool:
        """Whether what runs is not what the configuration says now."""
        return self.script_drifted or self.config_file_changed


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers the lifecycle decides by; durations in seconds."""

    probe_failures: int
    probe_successes: int
    startup_timeout: float
    quiet: float
    drain: float
    engine_kill: float
    load_kill: float | None

    def engine_alive(self, snapshot: Snapshot, now: float) -> bool:
        """Whether the engine container's liveness probe passes: `/livez/engine`.

        An engine that was ready and is lost for `engine_kill` should be restarted by the kubelet. One that is loading
        never is, unless `load_kill` says how long a failed load may stay.
        """
        if snapshot.lost_since is None:
            return True
        patience = self.engine_kill if snapshot.ready_in_run else self.load_kill
        return patience is None or now - snapshot.lost_since < patience


@dataclass(frozen=True, slots=True)
class Transition:
    """The state changed."""

    source: State
    event: Event
    target: State
    lasted: float  # seconds in `source`


class Effect(enum.Enum):
    """What the supervisor has to do, besides announcing transitions."""

    RELEASE_HOLD = enum.auto()
    EMPTY_POOL = enum.auto()  # the connections lead to a process that is gone
    PROBE_SOON = enum.auto()
    LEAVE = enum.auto()  # drained: the process may end


class Lifecycle:
    """The state of one engine. Every method takes facts and returns what follows; nothing else changes it."""

    def __init__(self, rules: Rules, now: float) -> None:
        self._rules = rules
        self.snapshot = Snapshot(State.WAITING, now, "not_published", "the launch script is not on the volume yet")
        self._first_sample = True
        self._good = self._bad = self._refused = 0
        self._progress_at = now
        self._held = False
        self._refuse_at: float | None = None
        self._left = False

    # -- facts ---------------------------------------------------------------------------------------------------

    def published(self, generation: str, now: float) -> list[Transition | Effect]:
        """The launch script of this generation lies on the volume."""
        self._update(published_generation=generation)
        reason, detail = "engine_not_started", "the engine container has not run the script yet"
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

    def sampled(self, status: EngineStatus | None, *, alive: bool | None, now: float) -> list[Transition | Effect]:
        """The volume was read: edges are derived here, since any phase may have come and gone between two looks.

        `alive` tells whether the script of that run still holds its FIFO open; None where nobody can know.
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
        if self.snapshot.run_over:
            return effects
        if status.asked:
            effects += self._fire(Event.STOP_REQUESTED, now, "stop_requested", "the engine was asked to stop")
        if over:
            effects += self._end_of_run(status, now)
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
            if self.snapshot.state in (State.WAITING, State.STARTING, State.LOADING, State.UNHEALTHY, State.FAILED):
                self._update(ready_in_run=True, progress=None)
            return self._fire(Event.HEALTHY, now, "", "")
        self._good = 0
        if busy and result.outcome is not Outcome.REFUSED:
            # A busy engine is slow to say so; its streams speak for it. But somebody listens while it is busy.
            self._bad = self._refused = 0
            return []
        self._bad += 1
        self._refused = self._refused + 1 if result.outcome is Outcome.REFUSED else 0
        if self.snapshot.state is not State.READY:
            return []
        # Nobody listens: that does not happen to a busy engine, so two looks are enough.
        if self._refused == 1 and self._bad < self._rules.probe_failures:
            return [Effect.PROBE_SOON]
        if self._refused < 2 and self._bad < self._rules.probe_failures:
            return []
        return self._fire(Event.PROBES_FAILED, now, f"probe_{result.outcome}", result.detail)

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
            return self._fail(Event.DEADLINE, Failure("load_timeout", detail, now), now)
        detail = f"did not recover in {self._rules.startup_timeout:g} s"
        return self._fail(Event.DEADLINE, Failure("unresponsive", detail, now), now)

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

    # -- what follows --------------------------------------------------------------------------------------------

    def _start_of_run(self, now: float) -> list[Transition | Effect]:
        self._forget_probes()
        self._progress_at = now
        self._open_again()
        self._update(progress=None, ready_in_run=False)
        effects = self._fire(Event.ENGINE_STARTED, now, "loading", "the engine is loading")
        return [Effect.EMPTY_POOL, *effects, Effect.PROBE_SOON]

    def _end_of_run(self, status: EngineStatus, now: float) -> list[Transition | Effect]:
        self._update(run_over=True)
        self._forget_probes()
        self._held = False
        self._open_again()
        self._update(generation=None, progress=None)
        if status.asked:
            effects = self._fire(Event.ENDED, now, "engine_not_started", "the engine stopped as asked")
        elif status.phase is Phase.EXITED:
            code = status.code
            detail = (
                f"the engine ended by itself, exit code {code}" if code is not None else "the engine ended by itself"
            )
            if code is not None and code > 128:
                detail = f"the engine was ended by signal {code - 128}"
            reason = "killed" if code == 137 else "crashed"
            effects = self._fail(Event.CRASHED, Failure(reason, detail, now, code), now)
        else:
            detail = "the engine container is gone without a word: killed, most often for lack of memory"
            effects = self._fail(Event.CRASHED, Failure("killed", detail, now), now)
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

    def _forget_probes(self) -> None:
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
