"""The engine's states: what leads from one to another, what each means outside, and the snapshot everyone reads.

Two tables and plain values: no I/O, no clock, no task. `machine.Lifecycle` applies them to what happens; everyone else
reads. Time comes in as `now`, seconds of any monotonic clock.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from wings_proxy.engines.failure_reasons import Reason


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
        loading:   (stay,     loading,  ready,  unhealthy, stay,      stopping,  starting, failed, failed,  draining),
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
    """One health probe: the epoch and the time it began in, how it ended, and one line for a human.

    `worked` tells that the engine's counters moved while it failed.
    """

    epoch: int
    began: float
    outcome: Outcome
    detail: str = ""
    worked: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the engine has loaded: the newest phase its log showed, and its ratio 0..1 where there is one."""

    phase: str
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the engine ended or got nowhere. `code` is the shell's: 128 + n for signal n."""

    reason: Reason
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
    # When the load began, if it was seen: a sidecar that comes back in the middle of it knows from the one before.
    load_began: float | None = None
    # How long this generation took to load the last time, seconds; None if nobody saw it.
    expected_load: float | None = None
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
    def may_listen(self) -> bool:
        """Whether the engine served once and is not known to have ended, so that its pages may be there."""
        return self.ready_in_run and (self.meaning.forwards or not self.run_over)

    @property
    def healthy(self) -> bool:
        """What /health and /readyz answer."""
        return self.meaning.healthy

    def eta(self, now: float) -> float | None:
        """Seconds until the engine is ready, by its last start; None if that is not known, or proved wrong."""
        # One that was ready before we came is not loading, only not heard of yet.
        if self.state is not State.LOADING or self.ready_in_run or None in (self.load_began, self.expected_load):
            return None
        assert self.load_began is not None
        assert self.expected_load is not None
        remaining = self.load_began + self.expected_load - now
        return remaining if remaining > 0 else None

    def retry_after(self, now: float) -> int:
        """Seconds after which a refused client should come again: 1 to 60.

        From how long the last start took, else from the load's progress if it shows.
        """
        if (eta := self.eta(now)) is not None:
            return max(1, min(60, math.ceil(eta)))
        match self.state:
            case State.LOADING if self.progress is not None and self.progress.ratio:
                remaining = (now - self.since) * (1 - self.progress.ratio) / self.progress.ratio
                # The ratio is of one phase, and others follow it.
                return max(5, min(60, math.ceil(remaining)))
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
