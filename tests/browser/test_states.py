"""The status page in states that a real engine does not get into on demand, and before hostile text.

The sidecar's own answer is taken and changed on its way to the page, so that it always has the form the sidecar gives.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict

from tests.browser.driver import Browser, browser, chromium
from tests.browser.test_pages import assert_accessible, shoot
from tests.pod import Pod

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(300)]

DATA = "/status.json"
FORWARDED = ("Content-Type", "Content-Security-Policy", "WWW-Authenticate", "ETag", "Cache-Control")
# Runs if any of it gets into the page as markup, a script, an address or an attribute.
CANARY = (
    "\"'><img src=x onerror=window.pwned=1><script>window.pwned=1</script>javascript:window.pwned=1${window.pwned=1}"
)


@asynccontextmanager
async def looked_at(
    engine: Mapping[str, object] | None = None, **environ: str
) -> AsyncIterator[tuple[Pod, Browser, dict[str, Any]]]:
    """Yield a pod with a fake engine that is ready, a browser, and what the page was told."""
    chromium()
    async with Pod(engine=engine, **environ) as pod:
        await pod.start()
        await pod.until_state("ready")
        async with browser(pod.url) as page:
            body = json.loads((await pod.get(DATA))[1])
            yield pod, page, body


def changed(body: dict[str, Any], **health: Any) -> dict[str, Any]:
    """Return what the page is told, with another `health`."""
    return {**body, "health": {**body["health"], **health}}


def hostile(value: Any, *, name: str = "") -> Any:
    """Return the value with the canary in every text, but for the state: that one is ours."""
    if isinstance(value, dict):
        return {key: hostile(inner, name=key) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return f"{value}{CANARY}" if isinstance(value, str) and name != "state" else value


async def test_hostile_text_is_shown_as_text() -> None:
    async with looked_at(MODEL_NAME=CANARY, SERVED_MODEL_NAME=CANARY) as (pod, page, body):
        failure = {"reason": "crashed", "detail": "x", "hint": "y", "retryable": True, "exit_code": 1, "seconds_ago": 3}
        progress = {"phase": "weights", "ratio": 0.5}
        for state in ("failed", "loading", "unhealthy", "waiting"):
            told = changed(body, state=state, reason="volume_full", detail="z", last_failure=failure, progress=progress)
            told["history"] = [{"state": CANARY, "reason": "r", "seconds_ago": 9.0}, *body["history"]]
            await page("answer", path=DATA, body=hostile(told))
            await page("open", path="/")
            await page.sees("#state", f"^{state}$")
            await page.sees("#model", "onerror")
        assert await page("evaluate", expression="document.querySelectorAll('img, main script').length") == 0
        # The model's name comes from the configuration, and stands in our document's examples too.
        await page("open", path="/docs")
        await page.sees(".opblock-summary", "/v1/chat/completions")
        await page("click", selector='[data-path="/v1/chat/completions"]')
        await page.sees(".opblock-section-request-body", "application/json")
        example = await page("evaluate", expression="document.querySelector('.body-param__text').value")
        assert json.loads(example)["model"] == CANARY
        assert await page("evaluate", expression="window.pwned === undefined")
        assert await page("problems") == []
        assert (await pod.get("/"))[0] == 200


async def test_every_hold_up_says_what_to_do() -> None:
    async with looked_at() as (_, page, body):
        await page("open", path="/")
        for state, reason, advice in (
            ("waiting", "volume_full", "sizeLimit"),
            ("waiting", "volume_denied", "fsGroup"),
            ("starting", "engine_not_started", "kubectl describe pod"),
            ("loading", "foreign_server", "ENGINE_PORT"),
            ("unhealthy", "stalled", "livez/engine"),
            ("unhealthy", "probe_timeout", "queue"),
        ):
            await page("answer", path=DATA, body=changed(body, state=state, reason=reason, detail="the detail"))
            await page.sees("#why", f"{reason.replace('_', ' ')}: the detail")
            await page.sees("#state", f"^{state}$")
            await page.sees("#hint", advice)
            await assert_accessible(page)
        assert await page("problems") == []


async def test_a_load_shows_how_far_it_is_and_drift_is_not_overlooked() -> None:
    async with looked_at() as (_, page, body):
        progress = {"phase": "graph_capture", "ratio": 0.42}
        told = changed(body, state="loading", reason="loading", progress=progress, eta_seconds=95.0, drift=True)
        await page("answer", path=DATA, body=told)
        await page("open", path="/")
        await page.sees("#eta", "phase: graph capture 42 % · about 1 min 35 s to go")
        assert await page("evaluate", expression="document.getElementById('progress').value") == 0.42
        await page.sees("#drift", "when its container next starts")
        await assert_accessible(page)
        told = changed(told, config_file_changed=True)
        await page("answer", path=DATA, body=told)
        await page.sees("#drift", "configuration file has changed")


async def test_an_engine_that_hangs_and_a_sidecar_that_drains_are_seen() -> None:
    # One slot: what the sidecar asks for itself must wait too.
    hangs = {"fault": "stall", "fault_after": 3, "max_num_seqs": 1}
    async with looked_at(hangs, WINGS_STALL_SECONDS="1", WINGS_DRAIN_SECONDS="4") as (pod, page, _):
        await page("open", path="/")
        await page.sees("#state", "^ready$")
        await page.sees("#what", r"^vllm [0-9.]+ behind wings-infer \S+ on ")
        assert pod._session is not None
        chat = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        async with pod._session.post(f"{pod.url}/v1/chat/completions", json=chat, timeout=None) as stream:
            await stream.content.readany()
            await page.sees("#state", "^unhealthy$")
            await page.sees("#why", "stalled: requests in flight, and nothing moved")
            await shoot(page, "stalled")
            # The page goes on asking, and holds nothing up.
            drain = asyncio.create_task(pod.sidecar.terminate(), name="drain")
            await page.sees("#state", "^draining$")
            await page.sees("#since", "1 in flight")
            assert await drain == 0
        await page.sees("#gone", "has not answered since")
        assert await page("problems") == []


async def test_nobody_is_asked_while_nobody_looks() -> None:
    async with looked_at() as (_, page, body):
        await page("clock")
        await page("answer", path=DATA, body=body)
        await page("open", path="/")
        await page.sees("#state", "^ready$")
        await page("hide", hidden=True)
        before = await page("asked", path=DATA)
        await page("pass", seconds=60)
        assert await page("asked", path=DATA) == before
        await page("hide", hidden=False)
        for _ in range(3):
            await page("pass", seconds=2)
        assert await page("asked", path=DATA) > before


async def test_a_sidecar_that_is_gone_is_asked_less_and_less() -> None:
    async with looked_at() as (_, page, body):
        await page("clock")
        await page("answer", path=DATA, body=body)
        await page("open", path="/")
        await page.sees("#state", "^ready$")
        await page("answer", path=DATA)
        before = await page("asked", path=DATA)
        for _ in range(60):
            await page("pass", seconds=1)
        await page.sees("#gone", "has not answered since")
        # After 1, 2, 4, 8 and then every 15 s, not every second.
        assert 1 <= await page("asked", path=DATA) - before <= 9
        await page("answer", path=DATA, body={}, status=401)
        await page("pass", seconds=15)
        await page.sees("#gone", "key is not accepted any more")
        # Another pod may answer in its place, and a page that mixes two says so.
        await page("answer", path=DATA, body={**body, "host": "wings-infer-other"})
        await page("pass", seconds=15)
        await page.sees("#gone", "Several pods answer here, now wings-infer-other")
        await assert_accessible(page)
        await page("pass", seconds=70)
        await page.sees("#what", "on wings-infer-other$")


@asynccontextmanager
async def ingress(pod: Pod, prefix: str) -> AsyncIterator[str]:
    """A reverse proxy that serves the pod below a prefix, and takes it away, as an ingress does."""
    async with ClientSession(auto_decompress=False) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            path = request.raw_path.removeprefix(prefix)
            body, headers = await request.read(), {**request.headers}
            async with session.request(request.method, pod.url + path, data=body, headers=headers) as answer:
                kept = CIMultiDict((name, value) for name, value in answer.headers.items() if name in FORWARDED)
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

        app = web.Application()
        app.router.add_route("*", prefix + "/{rest:.*}", forward)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("")).rstrip("/") + prefix


async def test_the_pages_work_below_a_prefix_and_with_a_key(tmp_path: Path) -> None:
    chromium()
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    async with Pod(WINGS_API_KEYS_FILE=str(keys)) as pod:
        await pod.start()
        await pod.until_state("ready")
        async with (
            ingress(pod, "/team/llm") as url,
            browser(url, password="sesame") as page,
        ):
            await page("open", path="/")
            await page.sees("#state", "^ready$")
            await page("click", selector="nav a")
            await page.sees(".info .renderedMarkdown", "Authorize")
            await page("click", selector="button.authorize")
            await page("fill", selector=".auth-container input", value="sesame")
            await page("click", selector=".auth-btn-wrapper button.authorize")
            await page("click", selector=".btn-done")
            await page("click", selector='[data-path="/v1/chat/completions"]')
            await page("click", selector="button.execute")
            await page.sees(".live-responses-table .response", r"data: \{[\s\S]*\[DONE\]")
            assert await page("problems") == []
            # The engine's own document knows no key: the one that was given serves there too.
            await page("choose", selector="#select", label="the running engine")
            await page.sees(".info .title", "FastAPI")
            await page("click", selector='[data-path="/v1/models"]')
            await page("click", selector="button.execute")
            await page.sees(".live-responses-table .response", '"object": "list"')
            assert await page("problems") == []
