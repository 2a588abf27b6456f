"""What people read of an engine's life in `deploy/ENGINE.md`, made from what real engines wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Final

from wings_proxy.engines.failure_reasons import diagnose
from wings_proxy.engines.vllm import ENGINE
from wings_proxy.handover.engine_status import EngineStatus, Phase
from wings_proxy.lifecycle.engine_log import LineSplitter
from wings_proxy.lifecycle.machine import Lifecycle
from wings_proxy.lifecycle.state import Rules
from wings_proxy.server.status import Status

DATA: Final = Path(__file__).parent / "data" / "vllm-0.32.0"
TIMELINE: Final = DATA / "life.txt"

# The ten starts that fail most, each with the log the real vLLM left and the code it ended with.
STARTS: Final = MappingProxyType(
    {
        "A flag this version does not know": ("unknown_flag", 2),
        "A value a flag does not take (`--dtype=bfloat17`)": ("bad_choice", 2),
        "`MODEL_PATH` is not there": ("model_path", 1),
        "`MODEL_PATH` is a directory without a model": ("no_model_in_directory", 1),
        "A model's name, and no way to fetch it": ("not_downloaded", 1),
        "`MAX_MODEL_LEN` above what the model was made for": ("context_too_long", 1),
        "One request does not fit into the KV cache": ("kv_cache_too_small", 1),
        "The memory is somebody else's": ("memory_taken", 1),
        "`TP_SIZE` does not divide the attention heads": ("tensor_parallel", 1),
        "`ENGINE_PORT` is taken": ("port_in_use", 1),
    }
)
_RULES: Final = Rules(
    probe_failures=3, probe_successes=1, startup_timeout=300, quiet=5, drain=60, engine_kill=120, load_kill=None
)
_SHOWN: Final = ("status", "engine_ready", "state", "reason", "detail", "last_failure")


def health_after(name: str, code: int) -> dict[str, object]:
    """Return the part of /health that says why, after a start that left the log `name` and ended with `code`."""
    lines = LineSplitter().feed((DATA / f"start_{name}.log").read_bytes() + b"\n")
    why = diagnose(ENGINE.failure_lines, lines, code=code, was_ready=False)
    life = Lifecycle(_RULES, 0.0)
    run, generation = "00000000-0000-4000-8000-000000000001", "0" * 12
    life.published(generation, 0.0)
    for status in (
        EngineStatus(run, generation, Phase.RUNNING, asked=False, code=None, started=0, changed=0),
        EngineStatus(run, generation, Phase.EXITED, asked=False, code=code, started=0, changed=0),
    ):
        life.sampled(status, alive=True, now=0.0, why=why)
    health = Status(rules=_RULES, snapshot=lambda: life.snapshot, came_round_at=float, clock=float).health_body()
    failure = health["last_failure"]
    assert isinstance(failure, dict)
    del failure["seconds_ago"]
    return {key: health[key] for key in _SHOWN}


def start_failures() -> str:
    """Each start that fails, and what `/health` says."""
    parts = []
    for what, (name, code) in STARTS.items():
        body = json.dumps(health_after(name, code), indent=2)
        parts.append(f"### {what}\n\n```json\n{body}\n```")
    return "\n\n".join(parts)


def timeline() -> str:
    """The states the real vLLM went through in `tests/vllm/test_life.py`."""
    return f"```text\n{TIMELINE.read_text('utf-8').rstrip()}\n```"
