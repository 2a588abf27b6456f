"""A pod whose engine is the real llama.cpp with the default model, for tests marked `engine`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pod import ROOT, Pod
from tests.stream_client import Numbering
from wings_proxy.local.default_model import DEFAULT_MODEL, ensure_model
from wings_proxy.local.plan import LLAMA_SERVER, llama_shim

SLOTS = 4


async def real_model() -> Path:
    """Return the default model's file, fetched if it has to be; skip the test where there is no llama.cpp."""
    if importlib.util.find_spec("xllamacpp") is None:
        assert not os.environ.get("CI"), "CI must run this: pip install '.[llamacpp]'"
        pytest.skip("needs xllamacpp: pip install '.[llamacpp]'")
    return await ensure_model(os.environ, print)


def llama_pod(model: Path, **environ: str) -> Pod:
    """Return a pod that runs llama.cpp as `up` does; `environ` is the sidecar's."""
    pod = Pod(
        engine=None,
        ENGINE_TYPE="llamacpp",
        MODEL_PATH=str(model),
        MODEL_NAME=DEFAULT_MODEL.name,
        MAX_MODEL_LEN="512",
        MAX_NUM_SEQS=str(SLOTS),
        # The engine takes every CPU there is, and a probe has to wait for its turn.
        WINGS_PROBE_TIMEOUT_SECONDS="5",
        **environ,
    )
    pod.add_program(LLAMA_SERVER, llama_shim())
    pod.engine.environ["PYTHONPATH"] = str(ROOT)
    return pod


def _numbers(event: dict[str, Any]) -> Iterator[int]:
    if any(choice["delta"].get("content") for choice in event["choices"]):
        yield event["timings"]["predicted_n"] - 1


NUMBERED = Numbering(
    asked={
        "timings_per_token": True,
        "ignore_eos": True,
        # A token that ends inside a character has no event of its own: none does in this alphabet.
        "grammar": "root ::= [0-9 ]+",
    },
    numbers=_numbers,
)
"""llama.cpp counts the tokens of each answer itself (b11549, `tools/server/README.md`: `timings_per_token`)."""
