"""SGLang, `python3 -m sglang.launch_server`."""

from __future__ import annotations

import re

from wings_proxy.engines.base import OPENAI_PATHS, Engine, LaunchSettings, LoadPhase, with_user_flags
from wings_proxy.engines.failure_reasons import FailureLine, Reason
from wings_proxy.engines.log_stats import SGLANG_LOG
from wings_proxy.engines.metrics import SGLANG
from wings_proxy.engines.python_failures import exception_lines


def argv(settings: LaunchSettings) -> tuple[str, ...]:
    """Return the engine's command; `--enable-metrics`, since without it SGLang has no `/metrics`."""
    flags: list[tuple[str, ...]] = [
        ("--model-path", settings.model_path),
        ("--host", "127.0.0.1"),
        ("--port", str(settings.engine_port)),
        ("--tp-size", str(settings.tp_size)),
        ("--context-length", str(settings.max_model_len)),
    ]
    if settings.trust_remote_code:
        flags.append(("--trust-remote-code",))
    flags += [("--max-running-requests", str(settings.max_num_seqs)), ("--enable-metrics",)]
    if settings.served_model_name:
        flags.append(("--served-model-name", settings.served_model_name))
    arguments = with_user_flags(flags, settings.engine_extra_args)
    return ("python3", "-m", "sglang.launch_server", *arguments)


# `[2026-11-22 19:17:35] …`, with data or tensor parallelism `[2026-11-22 19:17:35 DP0 TP0] …`.
_PREFIX = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: [A-Z]{2}\d+)*\] "

ENGINE = Engine(
    name="sglang",
    argv=argv,
    served_model=lambda settings: settings.served_model_name or settings.model_path,
    health_path="/health",
    health_seconds=20.0,
    # uvicorn closes after 5.0 s.
    keep_alive_seconds=4.0,
    metric_prefix="sglang:",
    inference_paths=OPENAI_PATHS | {"/encode", "/classify", "/v1/classify", "/model_info", "/get_model_info", "/ping"},
    admin_paths=frozenset(
        {
            "/flush_cache",
            "/abort_request",
            "/pause_generation",
            "/continue_generation",
            "/release_memory_occupation",
            "/resume_memory_occupation",
            "/update_weights_from_disk",
            "/update_weights_from_tensor",
            "/update_weights_from_distributed",
            "/init_weights_update_group",
            "/get_weights_by_name",
            "/load_lora_adapter",
            "/unload_lora_adapter",
            "/start_profile",
            "/stop_profile",
            "/set_internal_state",
            "/get_server_info",
            "/server_info",
            "/configure_logging",
            "/slow_down",
            "/shutdown",
        }
    ),
    document_path="/openapi.json",
    version_source=("/server_info", "version"),
    load_phases=(
        LoadPhase("engine_init", re.compile(_PREFIX + r"server_args=")),
        LoadPhase("weights", re.compile(_PREFIX + r"Load weight begin")),
        LoadPhase(
            "weights",
            re.compile(
                r"(?:Multi-thread loading shards|Loading safetensors checkpoint shards): +\d+% Completed \| "
                r"(?P<done>\d{1,5})/(?P<total>\d{1,5}) \["
            ),
        ),
        LoadPhase("kv_cache", re.compile(_PREFIX + r"KV Cache is allocated")),
        LoadPhase("graph_capture", re.compile(_PREFIX + r"Capture (?:cuda|cpu) graph begin")),
        LoadPhase("server", re.compile(_PREFIX + r"INFO: +Started server process \[")),
        LoadPhase("warm_up", re.compile(_PREFIX + r"INFO: +Uvicorn running on ")),
    ),
    failure_lines=(
        *exception_lines(_PREFIX),
        FailureLine(
            Reason.PORT_IN_USE,
            (
                _PREFIX
                + r"ERROR: +\[Errno 98\] error while attempting to bind on address .{1,80}: address already in use"
            ),
            "the engine's port is taken",
        ),
        FailureLine(
            Reason.ENGINE_CORE_DIED,
            _PREFIX + r"Subprocess (?P<process>[\w-]{1,40}) \(pid=\d+\) crashed with exit code (?P<code>-?\d{1,3})\.",
            "the engine's process {process} died, exit code {code}",
        ),
    ),
    metrics=SGLANG,
    log_reader=SGLANG_LOG,
    python_module="sglang",
)
