"""What kubelets and people are told in each state: the second table of the design, row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from wings_proxy.engines.failure_reasons import ADVICE, Reason
from wings_proxy.lifecycle.state import Failure, Outcome, ProbeResult, Progress, Rules, Snapshot, State
from wings_proxy.server.status import Status

RULES = Rules(
    probe_failures=3, probe_successes=1, startup_timeout=300, quiet=5, drain=60, engine_kill=120, load_kill=None
)
Client = TestClient[web.Request, web.Application]


class Sidecar:
    """The endpoints over a snapshot set by hand, at second 1000."""

    def __init__(self, snapshot: Snapshot, *, rules: Rules = RULES, came_round_at: float = 999.0) -> None:
        self.snapshot = snapshot
        self.app = web.Application()
        Status(
            rules=rules, snapshot=lambda: self.snapshot, came_round_at=lambda: came_round_at, clock=lambda: 1000.0
        ).add_routes(self.app.router)


def snapshot(state: State, **changes: Any) -> Snapshot:
    lost = 990.0 if state in (State.UNHEALTHY, State.FAILED) else None
    return replace(Snapshot(state, 990.0, "some_reason", "some detail", lost_since=lost), **changes)


# state, `status` of the body, /health and /readyz, `ready` of /engine/status
ROWS = [
    (State.WAITING, "starting", 503, False),
    (State.STARTING, "starting", 503, False),
    (State.LOADING, "starting", 503, False),
    (State.READY, "healthy", 200, True),
    (State.UNHEALTHY, "unhealthy", 503, False),
    (State.FAILED, "failed", 503, False),
    (State.STOPPING, "stopping", 503, False),
    (State.DRAINING, "draining", 503, False),
]


@pytest.mark.parametrize(("state", "word", "code", "ready"), ROWS, ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("accepting", [True, False], ids=["accepting", "refusing"])
async def test_what_each_state_means(
    aiohttp_client: AiohttpClient, state: State, word: str, code: int, ready: bool, accepting: bool
) -> None:
    sidecar = Sidecar(snapshot(state, accepting=accepting, published_generation="g1"))
    client = await aiohttp_client(sidecar.app)
    expected = {
        "/health": code,
        "/readyz": code,
        "/v1/health/ready": code,
        "/livez": 200,
        "/v1/health/live": 200,
        "/startupz": 200,
        "/livez/engine": 200,
        "/engine/status": 200,
    }
    for path, status in expected.items():
        answer = await client.get(path)
        body = await answer.json()
        assert answer.status == status, path
        assert answer.content_type == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert ("Retry-After" in answer.headers) == (status == 503)
        match path:
            case "/health":
                assert (body["status"], body["engine_ready"], body["proxy_healthy"]) == (word, ready, True)
            case "/engine/status":
                assert body == {"ready": ready, "status": word}
            case "/livez" | "/v1/health/live":
                assert body == {"status": "alive"}
            case _:
                assert body == {"status": word, "state": state, "reason": "some_reason"}
        head = await client.head(path)
        assert (head.status, await head.read()) == (status, b"")


async def get(aiohttp_client: AiohttpClient, path: str, **sidecar: Any) -> tuple[int, dict[str, Any]]:
    client: Client = await aiohttp_client(Sidecar(**sidecar).app)
    answer = await client.get(path)
    return answer.status, await answer.json()


async def test_health_keeps_the_reference_body_and_says_everything(aiohttp_client: AiohttpClient) -> None:
    full = snapshot(
        State.LOADING,
        epoch=7,
        run="b",
        generation="old",
        published_generation="new",
        progress=Progress("weights", 0.5),
        last_probe=ProbeResult(7, began=998.5, outcome=Outcome.FOREIGN, detail="not an engine"),
        last_failure=Failure(Reason.KILLED, "the engine was ended by signal 9", at=960.5, code=137),
        restarts=2,
    )
    assert await get(aiohttp_client, "/health", snapshot=full) == (
        503,
        {
            "status": "starting",
            "engine_ready": False,
            "proxy_healthy": True,
            "state": "loading",
            "reason": "some_reason",
            "detail": "some detail",
            "since_seconds": 10.0,
            "progress": {"phase": "weights", "ratio": 0.5},
            "eta_seconds": None,
            "last_probe": {"outcome": "foreign", "detail": "not an engine", "seconds_ago": 1.5},
            "last_failure": {
                "reason": "killed",
                "detail": "the engine was ended by signal 9",
                "hint": ADVICE[Reason.KILLED].hint,
                "retryable": True,
                "exit_code": 137,
                "seconds_ago": 39.5,
            },
            "restarts": 2,
            "run": "b",
            "generation": "old",
            "drift": True,
            "config_file_changed": False,
        },
    )


async def test_a_sidecar_whose_supervisor_is_stuck_does_not_call_itself_healthy(aiohttp_client: AiohttpClient) -> None:
    _, body = await get(aiohttp_client, "/health", snapshot=snapshot(State.READY), came_round_at=989.9)
    assert body["proxy_healthy"] is False


async def test_health_of_a_sidecar_that_just_began(aiohttp_client: AiohttpClient) -> None:
    status, body = await get(aiohttp_client, "/health", snapshot=Snapshot(State.WAITING, 1000.0, "not_published", "…"))
    assert status == 503
    assert body == {
        "status": "starting",
        "engine_ready": False,
        "proxy_healthy": True,
        "state": "waiting",
        "reason": "not_published",
        "detail": "…",
        "since_seconds": 0.0,
        "progress": None,
        "eta_seconds": None,
        "last_probe": None,
        "last_failure": None,
        "restarts": 0,
        "run": None,
        "generation": None,
        "drift": False,
        "config_file_changed": False,
    }


@pytest.mark.parametrize(
    ("state", "seconds"),
    [(State.WAITING, "5"), (State.LOADING, "10"), (State.FAILED, "15"), (State.STOPPING, "1"), (State.DRAINING, "1")],
)
async def test_who_is_refused_learns_when_to_come_again(
    aiohttp_client: AiohttpClient, state: State, seconds: str
) -> None:
    client = await aiohttp_client(Sidecar(snapshot(state, progress=Progress("weights", 0.5))).app)
    for path in ("/health", "/readyz"):
        assert (await client.get(path)).headers["Retry-After"] == seconds


@pytest.mark.parametrize("state", State)
async def test_startup_is_the_launch_script_and_nothing_else(aiohttp_client: AiohttpClient, state: State) -> None:
    status, _ = await get(aiohttp_client, "/startupz", snapshot=snapshot(state))
    assert status == 503
    status, _ = await get(aiohttp_client, "/startupz", snapshot=snapshot(state, published_generation="g1"))
    assert status == 200


@pytest.mark.parametrize("state", State)
async def test_our_liveness_is_the_supervisors_and_nothing_of_the_engine(
    aiohttp_client: AiohttpClient, state: State
) -> None:
    for late, status in ((9.9, 200), (10.1, 503)):
        answer = await get(aiohttp_client, "/livez", snapshot=snapshot(state), came_round_at=1000.0 - late)
        body = {"status": "alive"} if status == 200 else {"status": "stuck", "supervisor_late_seconds": 10.1}
        assert answer == (status, body)


@pytest.mark.parametrize("state", [State.UNHEALTHY, State.FAILED])
@pytest.mark.parametrize(
    ("lost_for", "ready_in_run", "load_kill", "status"),
    [
        (119.9, True, None, 200),
        (120.0, True, None, 503),
        (120.0, True, 600.0, 503),
        (100_000.0, False, None, 200),
        (599.9, False, 600.0, 200),
        (600.0, False, 600.0, 503),
    ],
)
async def test_the_engine_is_given_up_after_its_time(
    aiohttp_client: AiohttpClient,
    state: State,
    lost_for: float,
    ready_in_run: bool,
    load_kill: float | None,
    status: int,
) -> None:
    lost = snapshot(state, lost_since=1000.0 - lost_for, ready_in_run=ready_in_run)
    answer = await get(aiohttp_client, "/livez/engine", snapshot=lost, rules=replace(RULES, load_kill=load_kill))
    word = "unhealthy" if state is State.UNHEALTHY else "failed"
    assert answer == (status, {"status": word, "state": state, "reason": "some_reason"})


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (State.WAITING, "starting"),
        (State.STARTING, "starting"),
        (State.LOADING, "starting"),
        (State.READY, "healthy"),
        (State.STOPPING, "stopping"),
        (State.DRAINING, "draining"),
    ],
)
@pytest.mark.parametrize("ready_in_run", [True, False], ids=["was ready", "never ready"])
@pytest.mark.parametrize("load_kill", [None, 0.0, 600.0])
async def test_an_engine_that_is_not_lost_is_never_given_up(
    aiohttp_client: AiohttpClient, state: State, word: str, ready_in_run: bool, load_kill: float | None
) -> None:
    long = snapshot(state, since=-1_000_000.0, ready_in_run=ready_in_run)
    rules = replace(RULES, engine_kill=0.0, load_kill=load_kill)
    answer = await get(aiohttp_client, "/livez/engine", snapshot=long, rules=rules)
    assert answer == (200, {"status": word, "state": state, "reason": "some_reason"})


async def test_the_answers_follow_the_snapshot(aiohttp_client: AiohttpClient) -> None:
    sidecar = Sidecar(snapshot(State.LOADING))
    client = await aiohttp_client(sidecar.app)
    assert (await client.get("/readyz")).status == 503
    sidecar.snapshot = snapshot(State.READY)
    assert (await client.get("/readyz")).status == 200
    sidecar.snapshot = snapshot(State.DRAINING)
    assert (await client.get("/readyz")).status == 503


async def test_nothing_can_be_written(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(Sidecar(snapshot(State.READY)).app)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert (await client.request(method, "/health")).status == 405
