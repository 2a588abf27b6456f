"""Starts of the real vLLM that fail: what `/health` and `up` say of each. They end in seconds, before weights are read.

`make test-vllm` runs it; among what it prints is the body of `/health` for each.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.vllm.running import VllmUp, vllm_up
from wings_proxy.engines.failure_reasons import ADVICE, Reason

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@dataclass(frozen=True, slots=True)
class Start:
    """A start that fails: further flags and settings, its reason, its exit code, and words a person has to see."""

    reason: str
    code: int
    says: str
    flags: Sequence[str] = ()
    environ: dict[str, str] = field(default_factory=dict)


STARTS = {
    "a flag it does not know": Start(
        "unknown_argument", 2, "unrecognized arguments: --max-model-length", ["--max-model-length=4096"]
    ),
    "a value it does not know": Start("invalid_argument", 2, "invalid choice: 'bfloat17'", ["--dtype=bfloat17"]),
    # `up` looks into the directory itself; the engine's own flag goes past that, as a pod does.
    "a path that is not there": Start("model_not_found", 1, "'/no/such/model'", ["--model=/no/such/model"]),
    "a directory without a model": Start("model_not_found", 1, "the presence of a 'config.json'", ["--model={empty}"]),
    "a model that was not downloaded": Start(
        "model_unreachable", 1, "cached snapshot folder", environ={"MODEL_PATH": "no-such/model"}
    ),
    "more context than the model has": Start(
        "context_too_large", 1, "derived max_model_len", environ={"MAX_MODEL_LEN": "100000"}
    ),
    "heads that do not divide": Start(
        "tp_size_unfit", 1, "divisible by tensor parallel size", environ={"TP_SIZE": "3"}
    ),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=list(STARTS))
def test_a_start_that_fails_says_why(start: Start, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    flags = [flag.format(empty=empty) for flag in start.flags]
    with vllm_up(tmp_path, *flags, **start.environ) as run:
        check(run, start)


def test_a_port_that_somebody_else_took_meanwhile(tmp_path: Path) -> None:
    with vllm_up(tmp_path) as run, socket.socket() as somebody:
        # `up` looks whether it is free; vLLM takes it some seconds after its start.
        run.until(lambda: "engine loading" in run.said)
        somebody.bind(("127.0.0.1", run.engine_port))
        somebody.listen()
        check(run, Start("port_in_use", 1, "Address already in use"))


def check(run: VllmUp, start: Start) -> None:
    """`up` says why; it tries again only what another try may help."""
    reason = Reason(start.reason)
    again = "starting engine again in " if ADVICE[reason].retryable else "engine would fail so again: giving up"
    run.until(lambda: run.process.poll() is not None or any(line.startswith(again) for line in run.said))
    told = "\n".join(run.said)
    print("\n" + told)
    for words in (again, start.reason, f"ended with code {start.code}", start.says, ADVICE[reason].hint):
        assert words in told, words
