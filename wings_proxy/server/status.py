"""What kubelets, people and load balancers ask us: /health and the probes, all read off the snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiohttp import web

from wings_proxy.engines.failure_reasons import ADVICE
from wings_proxy.lifecycle.state import Rules, Snapshot

# The supervisor comes round every 2 s; five times that is not a busy loop any more but a dead one.
_SUPERVISOR_LATE_SECONDS: Final = 10.0


class Status:
    """Answers about one sidecar and its engine. Reads, never decides."""

    def __init__(
        self,
        *,
        rules: Rules,
        snapshot: Callable[[], Snapshot],
        came_round_at: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._snapshot = snapshot
        self._came_round_at = came_round_at
        self._clock = clock

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the endpoints; GET and HEAD."""
        router.add_get("/health", self.health)
        for path in ("/readyz", "/v1/health/ready"):
            router.add_get(path, self.readyz)
        for path in ("/livez", "/v1/health/live"):
            router.add_get(path, self.livez)
        router.add_get("/startupz", self.startupz)
        router.add_get("/livez/engine", self.engine_livez)
        router.add_get("/engine/status", self.engine_status)

    async def health(self, _: web.Request) -> web.Response:
        """Everything about the engine; 200 only when it is ready."""
        snapshot = self._snapshot()
        return self._answer(ok=snapshot.healthy, body=self.health_body(), snapshot=snapshot)

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether this pod should get requests: the readiness probe."""
        snapshot = self._snapshot()
        return self._answer(ok=snapshot.healthy, body=self._short(), snapshot=snapshot)

    async def livez(self, _: web.Request) -> web.Response:
        """Whether this process works: our own liveness probe. Nothing of the engine: restarting us cannot heal it."""
        late = self._late()
        if late < _SUPERVISOR_LATE_SECONDS:
            return self._answer(ok=True, body={"status": "alive"})
        return self._answer(ok=False, body={"status": "stuck", "supervisor_late_seconds": round(late, 1)})

    async def startupz(self, _: web.Request) -> web.Response:
        """Whether the launch script was published, whatever came later: the start-up probe."""
        published = self._snapshot().published_generation is not None
        return self._answer(ok=published, body=self._short())

    async def engine_livez(self, _: web.Request) -> web.Response:
        """Whether the engine container should be left alone: *its* liveness probe, on our port."""
        alive = self._rules.engine_alive(self._snapshot(), self._clock())
        return self._answer(ok=alive, body=self._short())

    async def engine_status(self, _: web.Request) -> web.Response:
        """The short form of the deployment this replaces; always 200."""
        snapshot = self._snapshot()
        return self._answer(ok=True, body={"ready": snapshot.healthy, "status": snapshot.meaning.health})

    def health_body(self) -> dict[str, object]:
        """Return the body of /health: the three keys of the reference, then ours."""
        snapshot, now = self._snapshot(), self._clock()
        progress, probe, failure = snapshot.progress, snapshot.last_probe, snapshot.last_failure
        return {
            "status": snapshot.meaning.health,
            "engine_ready": snapshot.healthy,
            # With a supervisor that is stuck, all that follows is from memory.
            "proxy_healthy": self._late() < _SUPERVISOR_LATE_SECONDS,
            "state": snapshot.state,
            "reason": snapshot.reason,
            "detail": snapshot.detail,
            "since_seconds": round(now - snapshot.since, 3),
            "progress": None if progress is None else {"phase": progress.phase, "ratio": progress.ratio},
            "eta_seconds": None if (eta := snapshot.eta(now)) is None else round(eta, 1),
            "last_probe": None
            if probe is None
            else {"outcome": probe.outcome, "detail": probe.detail, "seconds_ago": round(now - probe.began, 3)},
            "last_failure": None
            if failure is None
            else {
                "reason": failure.reason,
                "detail": failure.detail,
                "hint": ADVICE[failure.reason].hint,
                "retryable": ADVICE[failure.reason].retryable,
                "exit_code": failure.code,
                "seconds_ago": round(now - failure.at, 3),
            },
            "restarts": snapshot.restarts,
            "run": snapshot.run,
            "generation": snapshot.generation,
            "drift": snapshot.drifted,
            "config_file_changed": snapshot.config_file_changed,
        }

    def _late(self) -> float:
        return self._clock() - self._came_round_at()

    def _short(self) -> dict[str, object]:
        snapshot = self._snapshot()
        return {"status": snapshot.meaning.health, "state": snapshot.state, "reason": snapshot.reason}

    def _answer(self, *, ok: bool, body: dict[str, object], snapshot: Snapshot | None = None) -> web.Response:
        headers = {"Cache-Control": "no-store"}
        if not ok and snapshot is not None:
            headers["Retry-After"] = str(snapshot.retry_after(self._clock()))
        return web.json_response(body, status=200 if ok else 503, headers=headers)
