"""llama.cpp's server, `llama-server`: the engine for a laptop and for CI."""

from __future__ import annotations

import re

from wings_proxy.engines.base import OPENAI_PATHS, Engine, LaunchSettings, LoadPhase, with_user_flags
from wings_proxy.engines.failure_reasons import FailureLine, Reason
from wings_proxy.engines.log_stats import LLAMACPP_LOG
from wings_proxy.engines.metrics import LLAMACPP


def argv(settings: LaunchSettings) -> tuple[str, ...]:
    """Return the engine's command; `-c` is the context of all slots together."""
    flags: list[tuple[str, ...]] = [
        ("-m", settings.model_path),
        ("--host", "127.0.0.1"),
        ("--port", str(settings.engine_port)),
        ("-c", str(settings.max_model_len * settings.max_num_seqs)),
        ("-np", str(settings.max_num_seqs)),
        ("--metrics",),
        ("--alias", settings.served_model_name or settings.model_name),
    ]
    arguments = with_user_flags(flags, settings.engine_extra_args)
    return ("llama-server", *arguments)


# `0.09.842.131 I srv    load_model: …`: minutes, seconds, milliseconds, microseconds since the start.
_PREFIX = r"\d+\.\d\d\.\d{3}\.\d{3} I \w+ +"
_ERROR = r"\d+\.\d\d\.\d{3}\.\d{3} E "

ENGINE = Engine(
    name="llamacpp",
    argv=argv,
    served_model=lambda settings: settings.served_model_name or settings.model_name,
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
    document_path=None,
    version_source=("/props", "build_info"),
    load_phases=(
        LoadPhase("weights", re.compile(_PREFIX + r"(?:init|load_model): loading model")),
        LoadPhase("warm_up", re.compile(_PREFIX + r"load_model: initializing, n_slots")),
        LoadPhase("server", re.compile(_PREFIX + r"init: (?:model loaded|listening on )")),
    ),
    failure_lines=(
        FailureLine(
            Reason.MODEL_NOT_FOUND,
            _ERROR + r"gguf_init_from_file: failed to open GGUF file '.{0,1000}' \(No such file or directory\)",
            "there is no file at MODEL_PATH in the engine container",
        ),
        FailureLine(
            Reason.WEIGHTS_CORRUPT,
            _ERROR + r"gguf_init_from_\w{1,20}: invalid magic characters",
            "MODEL_PATH is not a GGUF file",
        ),
        FailureLine(
            Reason.WEIGHTS_CORRUPT,
            _ERROR + r"gguf_init_from_\w{1,20}: (?:failed to read (?:magic|header)|bad GGUF version)",
            "no GGUF header can be read at MODEL_PATH: the file is empty, damaged or cut short, or a directory",
        ),
        FailureLine(
            Reason.WEIGHTS_CORRUPT,
            _ERROR + r"llama_model_load: error loading model: tensor '(?P<tensor>[\w.]{1,60})' data is not within",
            "the model's file ends too early, at {tensor}",
        ),
        FailureLine(
            Reason.UNSUPPORTED_MODEL,
            (
                _ERROR + r"llama_model_load: error loading model: (?:error loading model architecture: )?"
                r"unknown model architecture: '(?P<model>[\w.-]{1,60})'"
            ),
            "this engine does not know the architecture {model}",
        ),
        FailureLine(
            Reason.CUDA_OOM,
            (
                _ERROR
                + r"ggml_backend_cuda_buffer_type_alloc_buffer: allocating (?P<size>[\d.]{1,12} MiB) on device \d+: "
                r"cudaMalloc failed: out of memory"
            ),
            "the GPU's memory is used up: {size} more were not there",
        ),
        FailureLine(
            Reason.PORT_IN_USE,
            _ERROR + r"srv +start: couldn't bind HTTP server socket, ",
            "the engine's port is taken",
        ),
        FailureLine(
            Reason.MODEL_NOT_FOUND,
            r"llama-server: .{0,1000} is a directory, not a GGUF file$",
            "MODEL_PATH is a directory, and llama.cpp wants a GGUF file",
        ),
        # The command of the embedded default, and llama.cpp's own.
        FailureLine(
            Reason.UNKNOWN_ARGUMENT,
            r"(?:llama-server: unrecognized arguments|error: invalid argument): (?P<flag>--?[A-Za-z][\w-]{0,60})",
            "the engine does not know the argument {flag}",
        ),
        FailureLine(
            Reason.INVALID_ARGUMENT,
            (
                r"llama-server: argument (?P<flag>--?[A-Za-z][\w-]{0,60})(?:[/,][^:]{0,100})?: "
                r"(?:invalid|expected|not allowed)"
            ),
            "the engine refuses the value of {flag}",
        ),
        FailureLine(
            Reason.MISSING_MODULE,
            r"llama-server: No module named '(?P<module>[\w.]{1,60})'",
            "there is no Python module {module} in the engine's image",
        ),
        FailureLine(
            Reason.COMMAND_NOT_FOUND,
            r"(?:env|setsid): (?:failed to execute )?[‘']?(?P<command>[\w.-]{1,40})['’]?: No such file or directory",
            "there is no command {command} in the engine's image",
        ),
    ),
    metrics=LLAMACPP,
    log_reader=LLAMACPP_LOG,
)
