"""llama.cpp's server, `llama-server`: the engine for a laptop and for CI."""

from __future__ import annotations

import re

from wings_proxy.config import Config
from wings_proxy.engines.base import OPENAI_PATHS, Engine, LoadPhase, with_user_flags


def argv(config: Config) -> tuple[str, ...]:
    """Return the engine's command; `-c` is the context of all slots together."""
    flags: list[tuple[str, ...]] = [
        ("-m", config.model_path),
        ("--host", "127.0.0.1"),
        ("--port", str(config.engine_port)),
        ("-c", str(config.max_model_len * config.max_num_seqs)),
        ("-np", str(config.max_num_seqs)),
        ("--metrics",),
        ("--alias", config.served_model_name or config.model_name),
    ]
    arguments = with_user_flags(flags, config.engine_extra_args)
    return ("llama-server", *arguments)


# `0.09.842.131 I srv    load_model: …`: minutes, seconds, milliseconds, microseconds since the start.
_PREFIX = r"\d+\.\d\d\.\d{3}\.\d{3} I \w+ +"

ENGINE = Engine(
    name="llamacpp",
    argv=argv,
    health_path="/health",
    health_seconds=0.0,
    # It says `Keep-Alive: timeout=5` and closes after each streamed answer all the same, in the same millisecond: the
    # next request on that connection would be read and dropped (seen on b11549).
    keep_alive_seconds=0.0,
    metric_prefix="llamacpp:",
    inference_paths=OPENAI_PATHS
    | {
        "/completion",
        "/completions",
        "/chat/completions",
        "/embedding",
        "/embeddings",
        "/reranking",
        "/v1/reranking",
        "/infill",
        "/apply-template",
        "/models",
    },
    admin_paths=frozenset({"/slots", "/slots/*", "/props", "/lora-adapters"}),
    load_phases=(
        LoadPhase("weights", re.compile(_PREFIX + r"(?:init|load_model): loading model")),
        LoadPhase("warm_up", re.compile(_PREFIX + r"load_model: initializing, n_slots")),
        LoadPhase("server", re.compile(_PREFIX + r"init: (?:model loaded|listening on )")),
    ),
)
