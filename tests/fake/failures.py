"""Starts that fail: what vLLM prints and the exit code it ends with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.fake.logs import Log, Output

_DATA: Final = Path(__file__).parent.parent / "data" / "vllm-0.32.0"

# Captured: `start_<name>.log`, and the exit code.
_CAPTURED: Final = {
    "model_path": 1,
    "no_model_in_directory": 1,
    "not_downloaded": 1,
    "context_too_long": 1,
    "kv_cache_too_small": 1,
    "memory_taken": 1,
    "tensor_parallel": 1,
    "port_in_use": 1,
    "unknown_flag": 2,
    "bad_choice": 2,
}

# They need a GPU, so none was captured: the messages are those of vLLM's tracker (issues 28143, 27508) and of torch.
_OF_A_GPU: Final = {
    "cuda_oom": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of "
        "23.68 GiB of which 212.81 MiB is free."
    ),
    "no_kv_cache": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine."
    ),
}

NAMES: Final = (*_CAPTURED, *_OF_A_GPU)


def failure(name: str, log: Log) -> tuple[int, Iterator[Output]]:
    """Return exit code and output of the failed start of that name."""
    if name in _OF_A_GPU:
        lines = ("EngineCore failed to start.", "Traceback (most recent call last):", _OF_A_GPU[name])
        return 1, log.failed(lines)
    text = (_DATA / f"start_{name}.log").read_text()
    return _CAPTURED[name], (Output(line, stderr=True) for line in text.splitlines(keepends=True))
