"""vLLM, `python3 -m vllm.entrypoints.openai.api_server`.

The module form, not `vllm serve`: it is the one every version has. Only flags that every version since 0.8 knows:
an unknown flag ends the engine with exit code 2.
"""

from __future__ import annotations

import re

from wings_proxy.config import Config
from wings_proxy.engines.base import OPENAI_PATHS, Engine, LoadPhase, with_user_flags


def argv(config: Config) -> tuple[str, ...]:
    """Return the engine's command."""
    flags: list[tuple[str, ...]] = [
        ("--model", config.model_path),
        ("--host", "127.0.0.1"),
        ("--port", str(config.engine_port)),
        ("--tensor-parallel-size", str(config.tp_size)),
        ("--max-model-len", str(config.max_model_len)),
    ]
    if config.trust_remote_code:
        flags.append(("--trust-remote-code",))
    flags.append(("--max-num-seqs", str(config.max_num_seqs)))
    if config.served_model_name:
        flags.append(("--served-model-name", config.served_model_name))
    arguments = with_user_flags(flags, config.engine_extra_args)
    return ("python3", "-m", "vllm.entrypoints.openai.api_server", *arguments)


# `(Worker pid=31000) INFO 11-22 18:48:13 [cpu_model_runner.py:68] …`; older versions print no process in front.
_PREFIX = r"(?:\(\w+ pid=\d+\) )?INFO \d\d-\d\d \d\d:\d\d:\d\d \[[\w./]+:\d+\] "

ENGINE = Engine(
    name="vllm",
    argv=argv,
    health_path="/health",
    health_seconds=0.0,
    # uvicorn closes after 5.0 s.
    keep_alive_seconds=4.0,
    metric_prefix="vllm:",
    inference_paths=OPENAI_PATHS
    | {"/pooling", "/classify", "/inference/v1/generate", "/v1/classify", "/load", "/ping", "/tokenizer_info"},
    admin_paths=frozenset(
        {
            "/sleep",
            "/wake_up",
            "/is_sleeping",
            "/pause",
            "/resume",
            "/is_paused",
            "/reset_prefix_cache",
            "/reset_mm_cache",
            "/reset_encoder_cache",
            "/collective_rpc",
            "/server_info",
            "/scale_elastic_ep",
            "/is_scaling_elastic_ep",
            "/start_profile",
            "/stop_profile",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/update_weights",
            "/invocations",
        }
    ),
    load_phases=(
        LoadPhase("engine_init", re.compile(_PREFIX + r"Initializing a V\d LLM engine")),
        LoadPhase("weights", re.compile(_PREFIX + r"Starting to load model ")),
        LoadPhase(
            "weights",
            re.compile(
                r"(?:\(\w+ pid=\d+\) )?Loading (?:safetensors|pt) checkpoint shards: +\d+% Completed \| "
                r"(?P<done>\d{1,5})/(?P<total>\d{1,5}) \["
            ),
        ),
        LoadPhase("compile", re.compile(_PREFIX + r"(?:Warming up model for the compilation|Using cache directory)")),
        LoadPhase("graph_capture", re.compile(r"(?:\(\w+ pid=\d+\) )?Capturing CUDA graph")),
        LoadPhase("warm_up", re.compile(_PREFIX + r"init engine \(profile, create kv cache, warmup model\) took ")),
        LoadPhase("server", re.compile(_PREFIX + r"Starting vLLM (?:API )?server")),
    ),
)
