"""vLLM, `python3 -m vllm.entrypoints.openai.api_server`.

The module form, not `vllm serve`: it is the one every version has. Only flags that every version since 0.8 knows:
an unknown flag ends the engine with exit code 2.
"""

from __future__ import annotations

import re

from wings_proxy.engines.base import OPENAI_PATHS, Engine, LaunchSettings, LoadPhase, with_user_flags
from wings_proxy.engines.failure_reasons import FailureLine, Reason
from wings_proxy.engines.log_stats import VLLM_LOG
from wings_proxy.engines.metrics import VLLM
from wings_proxy.engines.python_failures import exception_lines


def argv(settings: LaunchSettings) -> tuple[str, ...]:
    """Return the engine's command."""
    flags: list[tuple[str, ...]] = [
        ("--model", settings.model_path),
        ("--host", "127.0.0.1"),
        ("--port", str(settings.engine_port)),
        ("--tensor-parallel-size", str(settings.tp_size)),
        ("--max-model-len", str(settings.max_model_len)),
    ]
    if settings.trust_remote_code:
        flags.append(("--trust-remote-code",))
    flags.append(("--max-num-seqs", str(settings.max_num_seqs)))
    if settings.served_model_name:
        flags.append(("--served-model-name", settings.served_model_name))
    arguments = with_user_flags(flags, settings.engine_extra_args)
    return ("python3", "-m", "vllm.entrypoints.openai.api_server", *arguments)


# `(Worker pid=31000) INFO 11-22 18:48:13 [cpu_model_runner.py:68] …`; older versions print no process in front.
_PREFIX = r"(?:\(\w+ pid=\d+\) )?INFO \d\d-\d\d \d\d:\d\d:\d\d \[[\w./]+:\d+\] "
# The same of an error; what a process prints past its logger has the process in front alone, or nothing.
# A worker is `VllmWorker-0` while it is made, then `Worker`, and with several GPUs `Worker_TP0`.
_PROCESS = r"(?:\([\w-]+(?: pid=\d+)?\) )?"
# The logger puts this in front of each line of what it writes, with the level of the message: a prompt it logs with
# INFO has no line that begins so.
_STAMP = _PROCESS + r"ERROR \d\d-\d\d \d\d:\d\d:\d\d \[[\w./]+:\d+\] "
_ERROR = rf"(?:{_STAMP}|{_PROCESS})"


def _core_died(message: str, says: str) -> FailureLine:
    return FailureLine(Reason.ENGINE_CORE_DIED, _ERROR + message, says, _STAMP + message)


ENGINE = Engine(
    name="vllm",
    argv=argv,
    served_model=lambda settings: settings.served_model_name or settings.model_path,
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
    document_path="/openapi.json",
    version_source=("/version", "version"),
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
    failure_lines=(
        *exception_lines(_ERROR, stamp=_STAMP),
        _core_died(
            r"(?:vllm\.v1\.engine\.exceptions\.)?EngineDeadError: EngineCore encountered an issue",
            "the engine's core process died",
        ),
        _core_died(
            r"(?:Worker proc|Engine core proc|RuntimeError: Engine core process) "
            r"(?P<process>[\w-]{1,40}) died unexpectedly",
            "the engine's process {process} died",
        ),
        _core_died(
            r"RuntimeError: Engine core initialization failed",
            "the engine's core process could not start",
        ),
    ),
    metrics=VLLM,
    log_reader=VLLM_LOG,
    python_module="vllm",
)
