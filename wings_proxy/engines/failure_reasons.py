"""Why an engine's run failed, in a word of ours, and what a person can do about it.

Pure: how the run ended and its last log lines in, a diagnosis out. The log is untrusted, for prompts may stand in it.
So a line counts only if it has the form the engine gives to its errors from its first character on, a reason is always
one of `Reason`, and of the line itself nothing is told but what the pattern's named groups take: numbers, flags, names.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Reason(StrEnum):
    """Every reason there is; the label values of `wings_engine_failures_total`."""

    UNKNOWN_ARGUMENT = "unknown_argument"
    INVALID_ARGUMENT = "invalid_argument"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_UNREACHABLE = "model_unreachable"
    GATED_MODEL = "gated_model"
    UNSUPPORTED_MODEL = "unsupported_model"
    REMOTE_CODE_REFUSED = "remote_code_refused"
    WEIGHTS_CORRUPT = "weights_corrupt"
    CONTEXT_TOO_LARGE = "context_too_large"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    CUDA_OOM = "cuda_oom"
    GPU_MEMORY_TAKEN = "gpu_memory_taken"
    TOO_FEW_GPUS = "too_few_gpus"
    TP_SIZE_UNFIT = "tp_size_unfit"
    NO_GPU = "no_gpu"
    NCCL_ERROR = "nccl_error"
    SHARED_MEMORY_TOO_SMALL = "shared_memory_too_small"
    MISSING_MODULE = "missing_module"
    COMMAND_NOT_FOUND = "command_not_found"
    PORT_IN_USE = "port_in_use"
    ENGINE_CORE_DIED = "engine_core_died"
    KILLED = "killed"
    CRASHED = "crashed"
    EXITED = "exited"
    LOAD_TIMEOUT = "load_timeout"
    UNRESPONSIVE = "unresponsive"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a failure. `retryable`: the next start may succeed although nobody changes anything."""

    hint: str
    retryable: bool


ADVICE: Final[Mapping[Reason, Advice]] = MappingProxyType(
    {
        Reason.UNKNOWN_ARGUMENT: Advice(
            "Correct ENGINE_EXTRA_ARGS, or use an engine version that knows the argument.", retryable=False
        ),
        Reason.INVALID_ARGUMENT: Advice(
            "Correct the argument's value: it comes from ENGINE_EXTRA_ARGS or from the setting the flag is made of "
            "(wings-proxy render --argv shows the command).",
            retryable=False,
        ),
        Reason.MODEL_NOT_FOUND: Advice(
            "Check MODEL_PATH, and that the volume with the model is mounted in the engine container at that path.",
            retryable=False,
        ),
        Reason.MODEL_UNREACHABLE: Advice(
            "The engine could not fetch the model: check the container's network and proxy, or set MODEL_PATH to a "
            "directory on a volume.",
            retryable=True,
        ),
        Reason.GATED_MODEL: Advice(
            "Accept the model's licence on its page and give the engine container HF_TOKEN from a secret, or set "
            "MODEL_PATH to a local copy.",
            retryable=False,
        ),
        Reason.UNSUPPORTED_MODEL: Advice(
            "Use an engine version that knows this architecture, or another ENGINE_TYPE.", retryable=False
        ),
        Reason.REMOTE_CODE_REFUSED: Advice(
            "The model brings Python code of its own: set TRUST_REMOTE_CODE=true if you trust it.", retryable=False
        ),
        Reason.WEIGHTS_CORRUPT: Advice(
            "A weight file is damaged or only half there: copy or download the model again.", retryable=False
        ),
        Reason.CONTEXT_TOO_LARGE: Advice("Set MAX_MODEL_LEN to what the model was made for, or less.", retryable=False),
        Reason.KV_CACHE_TOO_SMALL: Advice(
            "Lower MAX_MODEL_LEN, or give the engine more memory: ENGINE_EXTRA_ARGS=--gpu-memory-utilization=0.95 "
            "(vLLM) or --mem-fraction-static=0.9 (SGLang), or a larger TP_SIZE.",
            retryable=False,
        ),
        Reason.CUDA_OOM: Advice(
            "Lower MAX_NUM_SEQS or MAX_MODEL_LEN, leave more room with "
            "ENGINE_EXTRA_ARGS=--gpu-memory-utilization=0.85 (vLLM) or --mem-fraction-static=0.8 (SGLang), or use a "
            "smaller model or a larger TP_SIZE.",
            retryable=False,
        ),
        Reason.GPU_MEMORY_TAKEN: Advice(
            "Something else holds the memory, often an engine that is not quite gone: see nvidia-smi on the node, or "
            "lower ENGINE_EXTRA_ARGS=--gpu-memory-utilization (vLLM on a CPU too).",
            retryable=True,
        ),
        Reason.TOO_FEW_GPUS: Advice(
            "Lower TP_SIZE, or give the engine container as many GPUs (resources.limits nvidia.com/gpu).",
            retryable=False,
        ),
        Reason.TP_SIZE_UNFIT: Advice(
            "Set TP_SIZE to a divisor of the model's number of attention heads.", retryable=False
        ),
        Reason.NO_GPU: Advice(
            "The engine container sees no GPU: check resources.limits (nvidia.com/gpu), the device plugin and the "
            "node's driver.",
            retryable=False,
        ),
        Reason.NCCL_ERROR: Advice(
            "The GPUs cannot talk to each other: start the engine with NCCL_DEBUG=INFO, check /dev/shm and the "
            "network interface (NCCL_SOCKET_IFNAME).",
            retryable=True,
        ),
        Reason.SHARED_MEMORY_TOO_SMALL: Advice(
            "Mount an emptyDir with medium Memory at /dev/shm of the engine container; with TP_SIZE above 1 it needs "
            "gigabytes.",
            retryable=False,
        ),
        Reason.MISSING_MODULE: Advice(
            "The engine's image lacks a Python module or system library: use the engine's own image, or the one that "
            "fits ENGINE_TYPE.",
            retryable=False,
        ),
        Reason.COMMAND_NOT_FOUND: Advice(
            "The engine's command is not in its image: check that the image fits ENGINE_TYPE.", retryable=False
        ),
        Reason.PORT_IN_USE: Advice(
            "Another process of the pod has the engine's port: set another ENGINE_PORT, or wait for an old engine to "
            "end.",
            retryable=True,
        ),
        Reason.ENGINE_CORE_DIED: Advice(
            "A process of the engine died under it: the lines above in the engine container's log say why; without "
            "any it was killed, most often for lack of memory (resources.limits.memory).",
            retryable=True,
        ),
        Reason.KILLED: Advice(
            "Most often the memory limit: kubectl describe pod says OOMKilled, then raise resources.limits.memory of "
            "the engine container. Else look for a failed liveness probe or an eviction.",
            retryable=True,
        ),
        Reason.CRASHED: Advice("Read the last lines of the engine container's log.", retryable=True),
        Reason.EXITED: Advice(
            "It ended with exit code 0 although nobody asked it to: read the last lines of the engine container's log.",
            retryable=True,
        ),
        Reason.LOAD_TIMEOUT: Advice(
            "Look at the engine container's log; if it is only slow, raise WINGS_STARTUP_TIMEOUT_SECONDS.",
            retryable=True,
        ),
        Reason.UNRESPONSIVE: Advice(
            "The process is there and does not answer: with WINGS_ENGINE_KILL_SECONDS and /livez/engine as the engine "
            "container's liveness probe the kubelet restarts it.",
            retryable=True,
        ),
    }
)

# Also of an engine that served: everything else belongs to a start, and what looks like it later is something else.
_AT_ANY_TIME: Final = frozenset(
    {Reason.CUDA_OOM, Reason.NCCL_ERROR, Reason.SHARED_MEMORY_TOO_SMALL, Reason.ENGINE_CORE_DIED}
)
# By number, as Linux counts them everywhere an engine runs.
_SIGNALS: Final = MappingProxyType(
    {4: " (SIGILL)", 6: " (SIGABRT)", 7: " (SIGBUS, most often a full /dev/shm)", 8: " (SIGFPE)", 11: " (SIGSEGV)"}
)
# Lines at the end of a log in which SIGKILL's reason may stand (SGLang's server ends itself by it, after a traceback of
# its scheduler). Another one was most often survived.
_NEAR_THE_END: Final = 100
# Says that something died, not of what: any other line knows better.
_CONSEQUENCES: Final = frozenset({Reason.ENGINE_CORE_DIED})


@dataclass(frozen=True, slots=True)
class FailureLine:
    """A line by which an engine says why it fails.

    Patterns are text until a run failed: compiling them all would take a fifth of our own start. `line` must match from
    the first character of a log line (escape sequences removed); `says` is our sentence, with the named groups filled
    in. Whatever a group can take is told to whoever may read `/health`: keep it to numbers, flags and names of bounded
    length. `of_ready`, where there is one, must match instead if the engine had served: by then its log may hold lines
    that clients wrote.
    """

    reason: Reason
    line: str
    says: str
    of_ready: str | None = None

    def pattern(self, *, was_ready: bool) -> re.Pattern[str] | None:
        """Return what a line has to match, None if a run that was ready is not believed it."""
        if not was_ready:
            return re.compile(self.line)
        return re.compile(self.of_ready or self.line) if self.reason in _AT_ANY_TIME else None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a run ended, and one sentence for a human."""

    reason: Reason
    detail: str


def diagnose(known: Sequence[FailureLine], lines: Iterable[str], *, code: int | None, was_ready: bool) -> Diagnosis:
    """Say why a run that nobody asked to end did.

    `lines` are the last of its log; `code` is the shell's, None if the launch script went along without a word;
    `was_ready` tells that the run served. The first line that names a cause counts: what follows it in the log follows
    from it. An engine that was killed from outside has not said so: of its log only the end counts.
    """
    if code in (None, 137):
        lines = deque(lines, maxlen=_NEAR_THE_END)
    patterns = [(kind, pattern) for kind in known if (pattern := kind.pattern(was_ready=was_ready)) is not None]
    consequence = None
    for line in lines:
        for kind, pattern in patterns:
            found = pattern.match(line)
            if found is None:
                continue
            said = Diagnosis(kind.reason, kind.says.format_map(found.groupdict("?")))
            if kind.reason not in _CONSEQUENCES:
                return said
            consequence = consequence or said
    return consequence or _by_code(code)


def _by_code(code: int | None) -> Diagnosis:
    match code:
        case None:
            return Diagnosis(
                Reason.KILLED, "the engine container is gone without a word: killed, most often for lack of memory"
            )
        case 0:
            return Diagnosis(Reason.EXITED, "the engine ended by itself, exit code 0")
        case 126 | 127:
            return Diagnosis(Reason.COMMAND_NOT_FOUND, f"the engine's command cannot be run, exit code {code}")
        case 137:
            return Diagnosis(Reason.KILLED, "the engine was ended by signal 9 (SIGKILL)")
        case _ if code > 128:
            return Diagnosis(
                Reason.CRASHED, f"the engine was ended by signal {code - 128}{_SIGNALS.get(code - 128, '')}"
            )
        case _:
            return Diagnosis(Reason.CRASHED, f"the engine ended by itself, exit code {code}")
