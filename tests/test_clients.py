"""The clients people use, as programs in an environment of their own, against the whole sidecar."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import Fault, StartEngine
from tests.sidecar import Sidecar, sidecar

HERE = Path(__file__).parent
# `make test-all` makes it; the clients' own dependencies must not be able to change ours.
PYTHON = HERE.parent / ".venv-clients" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists() and not os.environ.get("CI"), reason="no .venv-clients; `make test-all` makes it"
    ),
]


async def tell(running: Sidecar, story: str) -> dict[str, Any]:
    """Run one story of openai-python; return its result."""
    program = await asyncio.create_subprocess_exec(
        str(PYTHON),
        str(HERE / "clients" / "openai_python.py"),
        f"http://127.0.0.1:{running.port}",
        story,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    out, complaints = await program.communicate()
    assert program.returncode == 0, complaints.decode()
    return dict(json.loads(out))


async def ready(running: Sidecar) -> None:
    await running.health(lambda body: body["state"] == "ready")


async def test_a_streamed_chat_in_chinese_with_usage(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=24)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await tell(running, "streamed")
    assert told["completion_tokens"] == 24
    assert told["events"] >= 24
    assert any("\u4e00" <= character <= "\u9fff" for character in told["text"])
    assert "\ufffd" not in told["text"]


async def test_whole_answers_and_the_list_of_models(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await tell(running, "whole")
    assert told["models"] == ["/models/tiny-qwen2"]
    assert told["chat"]
    assert told["completion"]


@pytest.mark.parametrize("fault", [Fault.FIN, Fault.RST, Fault.BAD_CHUNK])
async def test_a_stream_cut_between_two_events_ends_with_an_error_the_client_raises(
    fake_engine: StartEngine, tmp_path: Path, fault: Fault
) -> None:
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=fault, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await tell(running, "cut")
    assert told["raised"] == "APIError"
    assert "the engine failed" in told["message"]
    assert told["events"] >= 4


async def test_a_stream_cut_inside_an_event_is_a_broken_connection(fake_engine: StartEngine, tmp_path: Path) -> None:
    # Half an event cannot be taken back: ended by a blank line it would be JSON that does not parse.
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=Fault.IN_CHUNK, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await tell(running, "cut")
    assert told["raised"] in ("APIConnectionError", "RemoteProtocolError", "ReadError")
    assert told["events"] >= 4


async def test_not_ready_is_an_error_the_client_knows(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(boot_seconds=30)
    async with sidecar(tmp_path, engine.port) as running:
        told = await tell(running, "refused")
    assert told == {"raised": "InternalServerError", "status": 503, "code": "engine_not_ready", "retry_after": "5"}


async def test_the_engines_own_error_keeps_its_class(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await tell(running, "unknown_model")
    assert told["raised"] == "NotFoundError"


async def test_a_client_that_leaves_stops_the_generation(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=5000, token_seconds=0.01)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        await tell(running, "leave")
        await engine.until(lambda: engine.running == 0)
    events = next(request.events for request in engine.requests if request.path.endswith("completions"))
    assert 1 <= events < 1000
