"""Starts that fail, as an operator sees them: what `/health` says, and what a client is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fake.counters import Counters
from tests.fake.failures import failure
from tests.fake.logs import Log
from tests.fake.settings import FakeSettings
from tests.fake_engine import StartEngine
from tests.ports import free_port
from tests.sidecar import RUN, chat, sidecar

DATA = Path(__file__).parent / "data"
OOM = b"(EngineCore pid=1) ERROR 11-22 19:11:35 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory. "
OOM += b"Tried to allocate 896.00 MiB. GPU 0 has a total capacity of 23.68 GiB\n"


def capture(name: str) -> bytes:
    return (DATA / "vllm-0.32.0" / f"start_{name}.log").read_bytes()


def told(body: dict[str, Any]) -> str:
    """Print the failure as an operator reads it, and return the reason."""
    last = body["last_failure"]
    again = "another try may help" if last["retryable"] else "another try will not help"
    print(f"{last['reason']} (exit code {last['exit_code']}, {again})\n  {last['detail']}.\n  {last['hint']}")
    return str(last["reason"])


def run_of(number: int) -> str:
    return f"{RUN[:-12]}{number:012}"


def faked(name: str) -> tuple[bytes, int]:
    """Return log and exit code of a start that the fake engine fails when told to."""
    code, output = failure(name, Log(FakeSettings(), Counters()))
    return "".join(one.text for one in output).encode(), code


# The ten an operator meets most, as the fake engine fails them; then the two that leave no word.
@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        (*faked("unknown_flag"), "unknown_argument"),
        (*faked("bad_choice"), "invalid_argument"),
        (*faked("model_path"), "model_not_found"),
        (*faked("not_downloaded"), "model_unreachable"),
        (*faked("context_too_long"), "context_too_large"),
        (*faked("kv_cache_too_small"), "kv_cache_too_small"),
        (*faked("cuda_oom"), "cuda_oom"),
        (*faked("memory_taken"), "gpu_memory_taken"),
        (*faked("tensor_parallel"), "tp_size_unfit"),
        (*faked("port_in_use"), "port_in_use"),
        (b"", 137, "killed"),
        (b"", 1, "crashed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_start_that_fails_says_why_and_what_to_do(tmp_path: Path, log: bytes, code: int, reason: str) -> None:
    async with sidecar(tmp_path, free_port()) as running:
        (tmp_path / "engine.log").write_bytes(log)
        running.status("running")
        await running.health(lambda body: body["state"] == "loading")
        running.status("exited", code=code)
        body = await running.health(lambda body: body["state"] == "failed")
        assert told(body) == body["reason"] == reason
        assert body["status"] == "failed"
        assert (await running.get("/livez/engine"))[0] == 200, "the container restarts by itself"
        status, answer = await running.get("/v1/models")
        # Neither path nor number, which are the operator's.
        assert (status, answer["error"]["message"]) == (503, f"The engine failed: {reason}.")
        _, metrics = await running.get("/metrics")
        assert f'wings_engine_failures_total{{reason="{reason}"}} 1.0' in metrics


async def test_a_crash_loop_shows_with_its_count(tmp_path: Path) -> None:
    async with sidecar(tmp_path, free_port()) as running:
        for number in range(1, 4):
            (tmp_path / "engine.log").write_bytes(capture("port_in_use"))
            running.status("running", run=run_of(number))
            await running.health(lambda body, number=number: body["run"] == run_of(number))  # type: ignore[misc]
            running.status("exited", code=1, run=run_of(number))
            body = await running.health(lambda body: body["state"] == "failed")
            assert (body["restarts"], told(body)) == (number - 1, "port_in_use")
        _, metrics = await running.get("/metrics")
        assert 'wings_engine_failures_total{reason="port_in_use"} 3.0' in metrics


async def test_the_next_start_does_not_take_the_reason_with_it(tmp_path: Path) -> None:
    """The container is quicker than we look: its log is put aside, and the news of the end comes with the next run."""
    async with sidecar(tmp_path, free_port()) as running:
        (tmp_path / "engine.log").write_bytes(capture("port_in_use"))
        running.status("running")
        await running.health(lambda body: body["state"] == "loading")
        (tmp_path / "engine.log").rename(tmp_path / "engine.log.1")
        (tmp_path / "engine.log").write_bytes(OOM)
        running.status("running", run=run_of(2))
        body = await running.health(lambda body: body["run"] == run_of(2))
        assert (body["state"], body["restarts"], told(body)) == ("loading", 1, "port_in_use")
        running.status("exited", code=1, run=run_of(2))
        assert told(await running.health(lambda body: body["state"] == "failed")) == "cuda_oom"


async def test_an_engine_that_served_does_not_fail_of_a_prompt(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        (tmp_path / "engine.log").write_bytes(b"OSError: [Errno 98] Address already in use\n")
        running.status("running")
        await running.health(lambda body: body["engine_ready"] and body["run"] == RUN)
        assert (await chat(running))[-1] == "[DONE]"
        # What still answers on the port may make it ready again at once.
        running.status("exited", code=1)
        assert told(await running.health(lambda body: body["last_failure"] is not None)) == "crashed"


async def test_without_a_failure_there_is_none(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        (tmp_path / "engine.log").write_bytes(OOM)
        running.status("running")
        await running.health(lambda body: body["engine_ready"] and body["run"] == RUN)
        running.status("stop_requested", asked=True)
        running.status("exited", asked=True, code=143)
        # Its run is over; what still answers on the port may make it ready again at once.
        body = await running.health(lambda body: body["run"] == RUN and body["generation"] is None)
        assert body["last_failure"] is None
