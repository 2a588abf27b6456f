"""The status page: one file that may load nothing, and figures that are there in every state."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpClient

from wings_proxy.handover.volume import VolumeReason
from wings_proxy.lifecycle.state import Outcome, Rules, Snapshot, State
from wings_proxy.lifecycle.timeline import Timeline
from wings_proxy.proxy.exchange import AbortPhase, Exchange
from wings_proxy.proxy.request_metrics import RequestMetrics
from wings_proxy.server.docs import STATIC
from wings_proxy.server.status import Status
from wings_proxy.server.status_page import StatusPage

RULES = Rules(
    probe_failures=3, probe_successes=1, startup_timeout=300, quiet=5, drain=60, engine_kill=120, load_kill=None
)
FIGURES = {"running": 2.0, "waiting": None}


class Sidecar:
    """The page of a sidecar that began at second 990 and is asked at second 1000."""

    def __init__(self, state: State = State.READY, figures: Mapping[str, float | None] | None = FIGURES) -> None:
        self.now = 990.0
        self.snapshot = Snapshot(state, 995.0, "some_reason", "some detail")
        self.metrics = RequestMetrics(["/v1/chat/completions", "/v1/models"])
        self.timeline = Timeline(replace(self.snapshot, state=State.WAITING, since=990.0, reason="not_published"))
        self.timeline.changed(self.snapshot)

        async def engine() -> Mapping[str, float | None] | None:
            return figures

        async def engine_version() -> str | None:
            return "0.32.0"

        page = StatusPage(
            status=Status(
                rules=RULES, snapshot=lambda: self.snapshot, came_round_at=lambda: 999.0, clock=lambda: self.now
            ),
            metrics=self.metrics,
            timeline=self.timeline,
            engine=engine,
            engine_version=engine_version,
            settings=[("ENGINE_PORT", "8000", "default")],
            engine_type="vllm",
            model_name="tiny",
            host="wings-infer-0",
            clock=lambda: self.now,
        )
        self.now = 1000.0
        self.app = web.Application()
        page.add_routes(self.app.router)

    async def data(self, aiohttp_client: AiohttpClient) -> dict[str, Any]:
        client = await aiohttp_client(self.app)
        answer = await client.get("/status.json")
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        body: dict[str, Any] = await answer.json()
        return body


@pytest.mark.parametrize("state", State)
async def test_every_state_is_shown_with_its_timeline(aiohttp_client: AiohttpClient, state: State) -> None:
    body = await Sidecar(state).data(aiohttp_client)
    assert (body["health"]["state"], body["health"]["since_seconds"]) == (state, 5.0)
    assert (body["model_name"], body["engine_type"], body["uptime_seconds"]) == ("tiny", "vllm", 10.0)
    assert (body["host"], body["engine_version"]) == ("wings-infer-0", "0.32.0")
    assert body["history"] == [
        {"state": "waiting", "reason": "not_published", "seconds_ago": 10.0},
        {"state": state, "reason": "some_reason", "seconds_ago": 5.0},
    ]
    assert body["settings"] == [{"name": "ENGINE_PORT", "value": "8000", "source": "default"}]


async def test_the_counts_of_all_routes_are_one(aiohttp_client: AiohttpClient) -> None:
    sidecar = Sidecar()
    for route in ("/v1/chat/completions", "/v1/models"):
        exchange = Exchange(route, "POST", "id", 0.0)
        exchange.status, exchange.abort_phase = 499, AbortPhase.STREAM
        sidecar.metrics.count(exchange, 1.0)
        sidecar.metrics.route(route).first_token.observe(0.015)
        sidecar.metrics.route(route).gap.observe(99.0)
    sidecar.metrics.in_flight = lambda: 7
    body = await sidecar.data(aiohttp_client)
    assert body["requests"] == {"in_flight": 7, "ended": 2, "aborted": 2}
    first, gap = body["latency"]["first_token"], body["latency"]["inter_chunk"]
    assert first["counts"][first["bounds"].index(0.02)] == 2
    assert (gap["counts"][-1], sum(gap["counts"]), len(gap["counts"])) == (2, 2, len(gap["bounds"]) + 1)


@pytest.mark.parametrize("figures", [FIGURES, None])
async def test_the_engines_figures_are_there_or_missing(
    aiohttp_client: AiohttpClient, figures: Mapping[str, float | None] | None
) -> None:
    assert (await Sidecar(figures=figures).data(aiohttp_client))["engine"] == figures


async def test_the_page_runs_its_own_script_and_nothing_else(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(Sidecar().app)
    answer = await client.get("/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    text = await answer.text()
    assert text == (STATIC / "status.html").read_text("utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("style", "script"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    # The only addresses in it are its own, and a name no browser looks up.
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r'\sstyle="|\son\w+="', text)
    # Below a prefix of an ingress they lead to ours.
    assert {"docs", "metrics", "health"} == set(re.findall(r'href="(?!data:)([^"]*)"', text))


def test_the_page_knows_what_to_do_about_every_reason_there_is() -> None:
    text = (STATIC / "status.html").read_text("utf-8")
    (says,) = re.findall(r"const SAYS = \{(.*?)\};", text, re.DOTALL)
    assert set(re.findall(r"^  (\w+):", says, re.MULTILINE)) == {*State}
    (hints,) = re.findall(r"const HINTS = \{(.*?)\};", text, re.DOTALL)
    probes = {f"probe_{outcome}" for outcome in Outcome if outcome is not Outcome.HEALTHY}
    others = {"engine_not_started", "foreign_server", "stalled"}
    assert set(re.findall(r"^  (\w+):", hints, re.MULTILINE)) == {*VolumeReason} | probes | others
