"""Every order in which the two containers can start, end and start again leads to ready, without a human.

Two real process trees and a shared directory. The numbers are those of the table of restart orders in the
documentation of the volume protocol.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.pod import Pod
from tests.stream_client import Verdict, stream
from wings_proxy.handover.launch import LaunchSpec, render

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]

FROM_NOTHING = ["waiting", "starting", "loading", "ready"]
ADOPTED = [["waiting", "starting", "loading", "ready"], ["waiting", "loading", "ready"]]

# An engine loads for a while: states between two looks of a test would otherwise be missed.
LOADS = {"boot_seconds": 0.3}


async def served(pod: Pod) -> None:
    """A stream through the sidecar comes whole, and nothing bad was left behind."""
    async with aiohttp.ClientSession() as session:
        answer = await stream(session, pod.url, 40)
    assert answer.verdict is Verdict.WHOLE, f"{answer}\n{pod.story()}"
    pod.assert_clean()


def since(pod: Pod, before: list[str]) -> list[str]:
    """The path of states after what was seen `before`."""
    return pod.path[len(before) :]


async def test_order_1_sidecar_then_engine() -> None:
    async with Pod(engine=LOADS) as pod:
        pod.sidecar.start()
        health = await pod.until_state("starting")
        assert (health["status"], health["reason"]) == ("starting", "engine_not_started")
        pod.engine.start()
        health = await pod.until_state("ready")
        assert (health["restarts"], health["drift"], health["last_failure"]) == (0, False, None)
        assert pod.path == FROM_NOTHING
        await served(pod)


async def test_order_2_the_engine_first_waits_for_a_whole_script() -> None:
    async with Pod(engine=LOADS) as pod:
        half = pod.volume / ".start_command.sh.0123456789abcdef"
        half.write_text("touch ran_half_a_script\n")
        pod.engine.start()
        await pod.engine.until(lambda: len(pod.engine.processes()) >= 2, 40)
        await asyncio.sleep(0.3)
        assert pod.status is None
        pod.sidecar.start()
        await pod.until_state("ready")
        assert pod.path == FROM_NOTHING
        assert not half.exists()
        assert not list(pod.directory.rglob("ran_half_a_script"))
        await served(pod)


async def test_order_2_a_stale_script_is_replaced_before_the_engine_starts() -> None:
    async with Pod(engine=LOADS) as pod:
        stale = render(LaunchSpec(("false",), (), 1, 1))
        (pod.volume / "start_command.sh").write_bytes(stale.text)
        pod.sidecar.start()
        await pod.until_state("starting")
        pod.engine.start()
        health = await pod.until_state("ready")
        assert health["generation"] != stale.generation
        assert health["drift"] is False
        assert pod.path == FROM_NOTHING
        await served(pod)


async def test_order_2_an_engine_that_ran_a_stale_script_runs_the_right_one_next() -> None:
    async with Pod(engine=LOADS) as pod:
        stale = render(LaunchSpec(("false",), (), 1, 1))
        (pod.volume / "start_command.sh").write_bytes(stale.text)
        pod.engine.start()
        await pod.engine.until(lambda: pod.engine.exits, 40)
        pod.sidecar.start()
        health = await pod.until_state("ready")
        assert health["generation"] != stale.generation
        assert pod.path[-3:] == ["starting", "loading", "ready"] or pod.path[-3:] == ["failed", "loading", "ready"]
        await served(pod)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_order_3_a_restarted_sidecar_adopts_the_running_engine(number: signal.Signals) -> None:
    async with Pod(engine={**LOADS, "token_seconds": 0.05}) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        leader, script = pod.leader, (pod.volume / "start_command.sh").stat().st_ino
        path = pod.path
        async with aiohttp.ClientSession() as session:
            first = asyncio.Event()
            open_stream = asyncio.create_task(stream(session, pod.url, 40, first=first))
            await first.wait()
            pod.sidecar.signal(number)
            await pod.sidecar.until(lambda: pod.sidecar.starts == 2, 40)
            answer = await open_stream
        # A killed sidecar takes its streams along, and the client can tell; one that was asked lets them end.
        wanted = Verdict.TRUNCATED if number == signal.SIGKILL else Verdict.WHOLE
        assert answer.verdict is wanted, answer
        after = await pod.until_state("ready")
        assert (after["run"], after["restarts"]) == (before["run"], 0)
        assert (pod.leader, len(pod.engine.exits)) == (leader, 0)
        assert (pod.volume / "start_command.sh").stat().st_ino == script, "the script was written again"
        tail = since(pod, path)
        assert tail[tail.index("waiting") :] in ADOPTED, pod.path
        # What the dead sidecar held is let go.
        assert not (pod.volume / "hold").exists()
        await served(pod)


async def test_order_3_an_engine_that_hangs_as_its_sidecar_comes_back_is_unhealthy_and_not_loading() -> None:
    async with Pod(engine=LOADS, WINGS_ENGINE_KILL_SECONDS="0.5") as pod:
        await pod.start()
        # No request came, so no hold lies there that would tell of the run.
        before = await pod.until_state("ready")
        leader = pod.leader
        assert leader is not None
        os.kill(leader, signal.SIGSTOP)
        try:
            pod.sidecar.signal(signal.SIGKILL)
            await pod.sidecar.until(lambda: pod.sidecar.starts == 2, 15)
            lost = await pod.until(lambda body: body.get("state") == "unhealthy" and body["since_seconds"] > 0.5, 60)
            assert (lost["run"], lost["reason"]) == (before["run"], "probe_timeout")
            assert (await pod.get("/livez/engine"))[0] == 503
        finally:
            os.kill(leader, signal.SIGCONT)
        after = await pod.until_state("ready")
        assert (after["run"], pod.leader) == (before["run"], leader)
        assert (await pod.get("/livez/engine"))[0] == 200
        await served(pod)


async def test_order_4_another_configuration_leaves_the_running_engine_alone() -> None:
    async with Pod(engine=LOADS) as pod:
        config = pod.directory / "config.yaml"
        config.write_text("model: {max_len: 4096}\n")
        pod.sidecar.environ["WINGS_CONFIG"] = str(config)
        await pod.start()
        before = await pod.until_state("ready")
        leader, path = pod.leader, pod.path
        config.write_text("model: {max_len: 8192}\n")
        health = await pod.until(lambda body: body.get("drift"))
        assert (health["state"], health["config_file_changed"]) == ("ready", True)
        pod.sidecar.signal(signal.SIGTERM)
        await pod.sidecar.until(lambda: pod.sidecar.starts == 2, 40)
        after = await pod.until_state("ready")
        assert (after["run"], after["generation"]) == (before["run"], before["generation"])
        assert (after["drift"], after["config_file_changed"]) == (True, False)
        assert (pod.leader, len(pod.engine.exits)) == (leader, 0)
        tail = since(pod, path)
        assert tail[tail.index("waiting") :] in ADOPTED, pod.path
        _, metrics = await pod.get("/metrics")
        assert b"\nwings_config_drift 1.0\n" in metrics

        def drifts() -> list[str]:
            told = [line["message"] for line in pod.log() if line["level"] == "warning"]
            return [message.split(";")[0] for message in told if "drift" in message]

        await pod.sidecar.until(lambda: len(drifts()) >= 2, 40)
        assert drifts() == [
            "drift: the configuration file has changed",
            "drift: the engine runs another launch script than was published",
        ]
        await served(pod)

        # The engine's next start takes the new script, and the report ends.
        pod.engine.signal(signal.SIGTERM)
        health = await pod.until(lambda body: body.get("state") == "ready" and body["run"] != before["run"])
        assert (health["drift"], health["generation"] != before["generation"]) == (False, True)
        _, metrics = await pod.get("/metrics")
        assert b"\nwings_config_drift 0.0\n" in metrics
        assert "'--max-model-len' \\\n  '8192'" in (pod.volume / "start_command.sh").read_text()
        await served(pod)


@pytest.mark.parametrize("how", ["the container is killed", "the engine crashes"])
async def test_order_5_the_engine_restarts_and_the_sidecar_lives(how: str) -> None:
    async with Pod(engine={**LOADS, "children": 1}) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        path = pod.path
        # Long enough for a look at it.
        pod.set_engine(boot_seconds=5, children=1)
        if how == "the container is killed":
            pod.engine.signal(signal.SIGKILL)
        else:
            assert pod.leader is not None
            os.kill(pod.leader, signal.SIGKILL)
        await pod.until_state("failed", "loading")
        status, body = await pod.get("/readyz")
        assert status == 503, body
        after = await pod.until(lambda body: body.get("state") == "ready" and body["run"] != before["run"])
        await pod.told("ready")
        # On a busy machine two refused probes are quicker than the script's word.
        assert since(pod, path) in (["failed", "loading", "ready"], ["unhealthy", "failed", "loading", "ready"])
        assert (after["restarts"], after["last_failure"]["reason"]) == (1, "killed")
        assert pod.sidecar.starts == 1
        await served(pod)


async def test_order_6_both_restart_at_once() -> None:
    async with Pod(engine=LOADS) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        path = pod.path
        pod.kill_both()
        await pod.sidecar.until(lambda: pod.sidecar.starts == 2 and pod.engine.starts == 2, 40)
        await pod.until(lambda body: body.get("state") == "ready" and body["run"] != before["run"])
        await pod.told("ready")
        assert since(pod, path)[0] == "waiting"
        assert "failed" not in since(pod, path), "the end of a run before ours is history"
        await served(pod)


KILLED_BEFORE_RENAME = """
import os, signal
rename = os.rename
def killed(source, target, **where):
    if target == "start_command.sh" and not os.path.exists({marker!r}):
        open({marker!r}, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, **where)
os.rename = killed
"""


async def test_order_7_the_sidecar_is_killed_between_write_and_rename() -> None:
    async with Pod(engine=LOADS) as pod:
        (pod.directory / "sitecustomize.py").write_text(KILLED_BEFORE_RENAME.format(marker=str(pod.directory / "was")))
        pod.sidecar.environ["PYTHONPATH"] += f":{pod.directory}"
        pod.engine.start()
        pod.sidecar.start()
        await pod.sidecar.until(lambda: pod.sidecar.starts == 2, 40)
        assert pod.sidecar.exits[0].code == -signal.SIGKILL
        assert list(pod.volume.glob(".start_command.sh.*")), "it was killed elsewhere"
        await pod.until_state("ready")
        assert pod.engine.exits == [], "the engine's container ran something that was not the script"
        assert not list(pod.volume.glob(".start_command.sh.*"))
        assert pod.path == FROM_NOTHING
        await served(pod)


async def test_order_8_a_crash_loop_shows_and_ends() -> None:
    async with Pod(engine={"start_failure": "unknown_flag"}) as pod:
        await pod.start()
        health = await pod.until(lambda body: body.get("restarts", 0) >= 3)
        failure = (await pod.until_state("failed"))["last_failure"]
        assert (failure["exit_code"], health["status"] in {"failed", "starting"}) == (2, True)
        # One line for each transition, nothing that repeats by the clock.
        assert len(pod.log()) < 12 + 4 * pod.engine.starts
        pod.set_engine(**LOADS)
        health = await pod.until_state("ready")
        assert health["last_failure"]["exit_code"] == 2
        assert set(pod.path) == {"waiting", "starting", "loading", "failed", "ready"}
        await served(pod)


@pytest.mark.parametrize("first", ["sidecar", "engine"])
async def test_order_9_a_volume_that_survived_a_reboot_is_history(first: str) -> None:
    async with Pod(engine=LOADS) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        path = pod.path
        for container in (pod.sidecar, pod.engine):
            container.backoff = 60
        pod.kill_both()
        await pod.sidecar.until(lambda: pod.sidecar.exits and pod.engine.exits, 40)
        # `running`, says the status, but nobody holds the FIFO; the hold names a run of another boot.
        (pod.volume / "hold").write_text(f"{before['run']}\n")
        await pod.sidecar.stop()
        await pod.engine.stop()
        containers = [pod.sidecar, pod.engine] if first == "sidecar" else [pod.engine, pod.sidecar]
        containers[0].start()
        if first == "sidecar":
            await pod.until_state("starting")
            assert not (pod.volume / "hold").exists()
        else:
            await asyncio.sleep(0.3)
        containers[1].start()
        await pod.until(lambda body: body.get("state") == "ready" and body["run"] != before["run"])
        await pod.told("ready")
        assert since(pod, path) in [FROM_NOTHING, *ADOPTED]
        await served(pod)


async def test_order_9_a_reboot_that_lost_the_fifo() -> None:
    async with Pod(engine=LOADS) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        pod.sidecar.backoff = pod.engine.backoff = 60
        pod.kill_both()
        await pod.sidecar.until(lambda: pod.sidecar.exits and pod.engine.exits, 40)
        await pod.sidecar.stop()
        await pod.engine.stop()
        copy_without_fifo(pod.volume)
        pod.sidecar.start()
        # Nobody can know whether the run that the status names is there: what answers, and what does not, decides.
        await pod.until_state("loading")
        pod.engine.start()
        await pod.until(lambda body: body.get("state") == "ready" and body["run"] != before["run"])
        await served(pod)


def copy_without_fifo(volume: Path) -> None:
    """What a backup and a restore of the volume leave of it."""
    kept = {file.name: file.read_bytes() for file in volume.iterdir() if file.is_file()}
    shutil.rmtree(volume)
    volume.mkdir()
    for name, data in kept.items():
        (volume / name).write_bytes(data)


@pytest.mark.parametrize("state", ["starting", "loading"])
async def test_order_10_deleted_before_it_was_ready(state: str) -> None:
    async with Pod(engine={"boot_seconds": 300}) as pod:
        pod.sidecar.start()
        if state == "loading":
            pod.engine.start()
        await pod.until_state(state)
        # Not killed, as after 30 s.
        codes = await asyncio.gather(pod.sidecar.terminate(), *([pod.engine.terminate()] if state == "loading" else []))
        assert codes == ([0, 0] if state == "loading" else [0])
        assert pod.path == [*FROM_NOTHING[: FROM_NOTHING.index(state) + 1], "draining"]
        pod.assert_clean()


async def test_order_11_sigterm_to_the_sidecar_alone() -> None:
    async with Pod(engine={**LOADS, "token_seconds": 0.02}) as pod:
        await pod.start()
        before = await pod.until_state("ready")
        leader, path = pod.leader, pod.path
        async with aiohttp.ClientSession() as session:
            first = asyncio.Event()
            open_stream = asyncio.create_task(stream(session, pod.url, 40, first=first))
            await first.wait()
            pod.sidecar.signal(signal.SIGTERM)
            assert (await open_stream).verdict is Verdict.WHOLE
        await pod.sidecar.until(lambda: pod.sidecar.starts == 2, 40)
        after = await pod.until_state("ready")
        assert [end.code for end in pod.sidecar.exits] == [0]
        assert (after["run"], pod.leader, pod.engine.exits) == (before["run"], leader, [])
        assert since(pod, path)[0] == "draining"
        assert since(pod, path)[1:] in ADOPTED
        await served(pod)


async def test_order_12_the_pod_is_deleted_while_the_engine_waits_for_the_script() -> None:
    async with Pod() as pod:
        pod.engine.start()
        await pod.engine.until(lambda: len(pod.engine.processes()) >= 2, 40)
        assert await pod.engine.terminate() == 143
        assert pod.engine.orphans == []
