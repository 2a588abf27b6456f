"""A lifecycle with a clock, to tell stories with, and lives in each of their states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from wings_proxy.engines.failure_reasons import Diagnosis
from wings_proxy.handover.engine_status import EngineStatus, Phase
from wings_proxy.lifecycle.machine import Effect, Lifecycle
from wings_proxy.lifecycle.stall import Moved, Stalled
from wings_proxy.lifecycle.state import (
    Outcome,
    ProbeResult,
    Progress,
    Rules,
    Snapshot,
    State,
    Transition,
)

HEALTHY, UNHEALTHY, REFUSED, TIMEOUT = Outcome.HEALTHY, Outcome.UNHEALTHY, Outcome.REFUSED, Outcome.TIMEOUT

RULES = Rules(
    probe_failures=3, probe_successes=1, startup_timeout=300, quiet=5, drain=60, engine_kill=120, load_kill=None
)


def running(run: str = "a", generation: str = "g1") -> EngineStatus:
    return EngineStatus(run, generation, Phase.RUNNING, asked=False, code=None, started=0, changed=0)


def stop_requested(run: str = "a", generation: str = "g1") -> EngineStatus:
    return EngineStatus(run, generation, Phase.STOP_REQUESTED, asked=True, code=None, started=0, changed=0)


def exited(code: int | None, run: str = "a", *, asked: bool = False, generation: str = "g1") -> EngineStatus:
    return EngineStatus(run, generation, Phase.EXITED, asked=asked, code=code, started=0, changed=0)


class Life:
    """A lifecycle with a clock, told facts the way the supervisor tells them: time passes after each."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.now = 1000.0
        self.in_flight = 0
        self.core = Lifecycle(rules, self.now)
        self.left = False
        self._news: list[str] = []

    # -- facts: each returns what followed -----------------------------------------------------------------------

    def publishes(self, generation: str = "g1") -> list[str]:
        return self._tell(self.core.published(generation, self.now))

    def sees(
        self, status: EngineStatus | None, *, alive: bool | None = True, why: Diagnosis | None = None
    ) -> list[str]:
        return self._tell(self.core.sampled(status, alive=alive, now=self.now, why=why))

    def probe(
        self, outcome: Outcome, *, epoch: int | None = None, busy: bool = False, worked: bool = False
    ) -> list[str]:
        epoch = self.it().epoch if epoch is None else epoch
        result = ProbeResult(epoch, self.now, outcome, "how", worked)
        return self._tell(self.core.probed(result, self.now, busy=busy))

    def stalls(self, *, epoch: int | None = None) -> list[str]:
        epoch = self.it().epoch if epoch is None else epoch
        return self._tell(self.core.work_seen(Stalled(epoch, "nothing moved"), self.now))

    def moves(self, *, epoch: int | None = None) -> list[str]:
        epoch = self.it().epoch if epoch is None else epoch
        return self._tell(self.core.work_seen(Moved(epoch), self.now))

    def log_grows(self, progress: Progress | None = None, *, epoch: int | None = None) -> list[str]:
        self.core.advanced(self.it().epoch if epoch is None else epoch, progress, self.now)
        return self._tell([])

    def takes_hold(self, *, epoch: int | None = None) -> list[str]:
        self.core.hold_taken(self.it().epoch if epoch is None else epoch)
        return self._tell([])

    def is_asked_to_leave(self) -> list[str]:
        return self._tell(self.core.drain(self.now))

    def serves(self, in_flight: int) -> list[str]:
        self.in_flight = in_flight
        return self._tell([])

    def waits(self, seconds: float) -> list[str]:
        self.now += seconds
        return self._tell([])

    # -- what can be seen ----------------------------------------------------------------------------------------

    def it(self) -> Snapshot:
        return self.core.snapshot

    def last_failure(self) -> str:
        failure = self.it().last_failure
        return "" if failure is None else failure.reason

    def due_in(self) -> float | None:
        deadline = self.core.deadline
        return None if deadline is None else deadline - self.now

    @property
    def state(self) -> str:
        return self.it().state.value

    @property
    def says(self) -> tuple[str, str]:
        return self.it().state, self.it().reason

    @property
    def door(self) -> str:
        return "open" if self.it().forwards else "closed"

    def engine_alive(self, **rules: Any) -> bool:
        return Rules(**{**{name: getattr(RULES, name) for name in RULES.__slots__}, **rules}).engine_alive(
            self.it(), self.now
        )

    def _tell(self, effects: list[Transition | Effect]) -> list[str]:
        news = list(self._noted(effects))
        news += self._noted(self.core.passed(self.now, self.in_flight))
        deadline = self.core.deadline
        assert deadline is None or deadline > self.now, "the supervisor would spin"
        return news

    def _noted(self, effects: list[Transition | Effect]) -> Iterator[str]:
        for effect in effects:
            if isinstance(effect, Effect):
                yield effect.name
            else:
                assert effect.lasted >= 0
                yield f"{effect.event}: {effect.source} -> {effect.target}"


def waiting() -> Life:
    return Life()


def starting() -> Life:
    life = Life()
    assert life.publishes() == ["published: waiting -> starting"]
    return life


def loading() -> Life:
    life = starting()
    assert life.sees(running()) == ["EMPTY_POOL", "engine_started: starting -> loading", "PROBE_SOON"]
    return life


def ready() -> Life:
    life = loading()
    assert life.probe(HEALTHY) == ["healthy: loading -> ready"]
    return life


def serving(in_flight: int = 2) -> Life:
    life = ready()
    assert life.takes_hold() == []
    assert life.serves(in_flight) == []
    return life


def unhealthy() -> Life:
    life = ready()
    life.probe(REFUSED)
    assert life.probe(REFUSED) == ["probes_failed: ready -> unhealthy"]
    return life


def stopping() -> Life:
    life = ready()
    assert life.sees(stop_requested()) == ["stop_requested: ready -> stopping"]
    return life


def crashed() -> Life:
    life = ready()
    assert life.sees(exited(1)) == ["EMPTY_POOL", "crashed: ready -> failed"]
    return life


def never_loaded() -> Life:
    life = loading()
    assert life.waits(300) == ["deadline: loading -> failed"]
    return life


def draining() -> Life:
    life = serving()
    assert life.is_asked_to_leave() == ["drain: ready -> draining"]
    return life


IN_STATE: dict[State, Callable[[], Life]] = {
    State.WAITING: waiting,
    State.STARTING: starting,
    State.LOADING: loading,
    State.READY: ready,
    State.UNHEALTHY: unhealthy,
    State.STOPPING: stopping,
    State.FAILED: never_loaded,
    State.DRAINING: draining,
}
