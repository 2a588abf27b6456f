"""A real Prometheus looks at two whole pods while one of them lives through what the alerts are about."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.monitoring.dashboard import expressions
from tests.monitoring.files import program, promtool, rules
from tests.monitoring.prometheus import Prometheus, prometheus
from tests.monitoring.promql import AWAITED, names_in
from tests.pod import Pod
from tests.stream_client import CHAT, Verdict, stream

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"]), pytest.mark.timeout(400)]

# What the inference gateway asks the pods for (its model-server protocol), by engine: names, and the labels it reads.
# The optional `vllm:cache_config_info` is on the captured page (tests/engines); SGLang 0.5.23 has none of these.
GATEWAY_NAMES: dict[str, dict[str, set[str]]] = {
    "vllm": {
        "vllm:num_requests_waiting": set(),
        "vllm:num_requests_running": set(),
        "vllm:kv_cache_usage_perc": set(),
        "vllm:lora_requests_info": {"max_lora", "running_lora_adapters"},
    },
    "sglang": {"sglang:num_queue_reqs": set(), "sglang:num_running_reqs": set(), "sglang:token_usage": set()},
}


@dataclass(frozen=True, slots=True)
class Rig:
    """The pods by the name of their engine, who watches them, and who uses them."""

    pods: dict[str, Pod]
    server: Prometheus
    client: aiohttp.ClientSession

    async def switch(self, pod: Pod, **settings: Any) -> None:
        """Change the fake engine while it runs."""
        url = f"http://127.0.0.1:{pod.engine_port}/__fake__"
        async with self.client.post(url, json={"set": settings}) as answer:
            assert answer.status == 200, await answer.text()

    async def chats(self, pod: Pod, count: int) -> None:
        """Stream answers, one after the other; a window of rates needs more than one scrape."""
        for _ in range(count):
            answer = await stream(self.client, pod.url, tokens=8)
            assert answer.verdict is Verdict.WHOLE, answer
            await asyncio.sleep(0.2)

    async def begin(self, pod: Pod) -> aiohttp.ClientResponse:
        """Begin a stream, and read its first event."""
        asked = {
            "model": "/models/tiny-qwen2",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": 1000,
        }
        answer = await self.client.post(pod.url + CHAT, json=asked)
        assert answer.status == 200, await answer.text()
        assert await answer.content.readline()
        return answer


@pytest.fixture(params=["uvloop", "asyncio"])
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    program("prometheus")
    async with AsyncExitStack() as stack:
        pods = {
            # Weights take most of a load, and each load longer than a few scrapes: its ratio is there for no more.
            engine: await stack.enter_async_context(
                Pod(
                    engine={
                        "boot_seconds": 4.0,
                        "shards": 100,
                        "token_seconds": 0.02,
                        "max_num_seqs": 1,
                        "adapters": ["sql", "chat-zh"] if engine == "vllm" else [],
                    },
                    ENGINE_TYPE=engine,
                    MODEL_NAME=f"tiny-{engine}",
                    # Less than Prometheus waits for the whole page.
                    WINGS_SCRAPE_TIMEOUT_SECONDS="0.5",
                    WINGS_STALL_SECONDS="2",
                    # That of the sidecar; the test's own does not matter.
                    WINGS_EVENT_LOOP=request.param,
                )
            )
            for engine in GATEWAY_NAMES
        }
        for pod in pods.values():
            await pod.start()
        targets = {engine: pod.port for engine, pod in pods.items()}
        server = await stack.enter_async_context(prometheus(tmp_path, targets))
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)))
        for pod in pods.values():
            await pod.until_state("ready")
        yield Rig(pods, server, client)


async def test_a_day_in_the_life_of_a_pod_as_prometheus_sees_it(rig: Rig) -> None:
    server, pod = rig.server, rig.pods["vllm"]

    # Ready, and used.
    for each in rig.pods.values():
        await rig.chats(each, 5)

    async def all_up() -> bool:
        targets = (await server.api("targets", state="active"))["activeTargets"]
        return [target["health"] for target in targets] == ["up", "up"]

    await server.until("both are up", all_up)
    for engine, names in GATEWAY_NAMES.items():
        for name, labels in names.items():
            (series,) = await server.ever(name)
            assert (series["pod"], labels - series.keys()) == (engine, set()), name
    (adapters,) = await server.ever("vllm:lora_requests_info")
    # An empty label is none to Prometheus, and to the gateway.
    assert (adapters["running_lora_adapters"], "waiting_lora_adapters" in adapters) == ("sql,chat-zh", False)

    # A client leaves.
    answer = await rig.begin(pod)
    answer.close()

    # The engine dies under a stream, stays away for a while, and returns.
    pod.engine.backoff = 15.0
    await rig.switch(pod, fault="exit", exit_code=1)
    answer = await rig.begin(pod)
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()
    down = await server.until("EngineDown", lambda: _alert(server, "WingsEngineDown", "critical"))
    assert down["labels"]["model_name"] == "tiny-vllm"
    pod.engine.backoff = 0.05
    await pod.until_state("ready")
    await server.until("EngineDown is over", lambda: _no_alert(server, "WingsEngineDown"))
    await rig.chats(pod, 3)

    # It stands still, and answers its health path all the time.
    await rig.switch(pod, fault="stall", fault_times=1)
    answer = await rig.begin(pod)
    await server.until("Stalled", lambda: _alert(server, "WingsEngineStalled", "warning"))
    answer.close()

    # Somebody restarts the engine's container.
    assert pod.engine.signal(signal.SIGTERM)
    await pod.until(lambda health: health.get("state") != "ready")
    await pod.until_state("ready")

    # Every alert that fired on the way says it in whole sentences.
    for alert in (await server.firing()).values():
        assert not re.search(r"<no value>|<error|{{", str(alert["annotations"])), alert

    await _every_rule_works(server)
    empty = [
        expression
        for expression in [*expressions(), *(rule["record"] for rule in rules() if "record" in rule)]
        if not names_in(_meant(expression)) & AWAITED and not await server.ever(_chosen(expression))
    ]
    assert empty == [], pod.story()

    # The sidecar goes: nobody else could tell.
    await pod.sidecar.stop()
    gone = await server.until("ScrapeFailing", lambda: _alert(server, "WingsScrapeFailing", "critical"))
    assert gone["labels"]["pod"] == "vllm"


async def test_our_own_families_are_as_prometheus_likes_them(rig: Rig) -> None:
    pod = rig.pods["vllm"]
    await rig.chats(pod, 1)
    status, page = await pod.get("/metrics")
    assert status == 200
    # The engine's have names with colons, which promtool does not like outside of recording rules.
    ours = [line for line in page.decode().splitlines() if re.match(r"(# (HELP|TYPE) )?wings_", line)]
    assert len(ours) > 100
    promtool("check", "metrics", given="\n".join(ours) + "\n")


async def _alert(server: Prometheus, name: str, severity: str) -> dict[str, Any] | None:
    return (await server.firing()).get((name, severity))


async def _no_alert(server: Prometheus, name: str) -> bool:
    return not any(fired == name for fired, _ in await server.firing())


async def _every_rule_works(server: Prometheus) -> None:
    groups = (await server.api("rules"))["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert len(loaded) == len(rules())
    assert [(rule["name"], rule.get("lastError")) for rule in loaded if rule["health"] != "ok"] == []


def _meant(expression: str) -> str:
    """Return what a recorded series is made of, down to metrics; an expression is itself."""
    for rule in rules():
        if rule.get("record") == expression:
            return str(rule["expr"])
    return expression


def _chosen(expression: str) -> str:
    """Return the expression as Grafana sends it with all pods chosen."""
    return expression.replace("$namespace", "tests").replace("$pod", "vllm|sglang").replace("$__rate_interval", "4s")
