"""Why an engine failed: what each known last word means, and what no log can make us say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.engines import ENGINES
from wings_proxy.engines.failure_reasons import ADVICE, Diagnosis, FailureLine, Reason, diagnose
from wings_proxy.lifecycle.engine_log import LineSplitter

DATA = Path(__file__).parent.parent / "data"
VLLM, SGLANG, LLAMACPP = "vllm-0.32.0", "sglang-0.5.23", "llamacpp-b11549"


def of_log(capture: str, name: str, code: int | None, *, was_ready: bool = False) -> tuple[str, str]:
    data = (DATA / capture / f"{name}.log").read_bytes()
    known = ENGINES[capture.partition("-")[0]].failure_lines
    found = diagnose(known, LineSplitter().feed(data + b"\n"), code=code, was_ready=was_ready)
    return found.reason, found.detail


# -- what was seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capture", "name", "code", "reason", "detail"),
    [
        (VLLM, "start_unknown_flag", 2, "unknown_argument", "the engine does not know the argument --no-such-flag"),
        (
            VLLM,
            "start_model_path",
            1,
            "model_not_found",
            "MODEL_PATH is neither a directory of the engine container nor the name of a model",
        ),
        (
            VLLM,
            "start_context_too_long",
            1,
            "context_too_large",
            "MAX_MODEL_LEN=100000 is more than the model's 8192 tokens",
        ),
        (VLLM, "start_port_in_use", 1, "port_in_use", "the engine's port is taken"),
        (VLLM, "start_bad_choice", 2, "invalid_argument", "the engine refuses the value of --dtype"),
        (
            VLLM,
            "start_no_model_in_directory",
            1,
            "model_not_found",
            "MODEL_PATH is neither a model's directory nor the name of a model: there is no config.json",
        ),
        (
            VLLM,
            "start_not_downloaded",
            1,
            "model_unreachable",
            "the model's server cannot be reached, and there is no copy of the model",
        ),
        (
            VLLM,
            "start_kv_cache_too_small",
            1,
            "kv_cache_too_small",
            "one request of 8192 tokens needs 0.01 GiB of KV cache, and there are 0.0 GiB",
        ),
        (
            VLLM,
            "start_memory_taken",
            1,
            "gpu_memory_taken",
            "only 7.21 of the node's 8.71 GiB of memory were free at the start",
        ),
        (VLLM, "start_tensor_parallel", 1, "tp_size_unfit", "2 attention heads cannot be shared out among TP_SIZE=3"),
        (LLAMACPP, "start_unknown_flag", 2, "unknown_argument", "the engine does not know the argument --no-such-flag"),
        (
            LLAMACPP,
            "start_model_path",
            1,
            "model_not_found",
            "there is no file at MODEL_PATH in the engine container",
        ),
        (LLAMACPP, "start_not_gguf", 1, "weights_corrupt", "MODEL_PATH is not a GGUF file"),
        (LLAMACPP, "start_truncated", 1, "weights_corrupt", "the model's file ends too early, at token_embd.weight"),
        (LLAMACPP, "start_port_in_use", 1, "port_in_use", "the engine's port is taken"),
    ],
)
def test_a_start_that_failed_says_why(capture: str, name: str, code: int, reason: str, detail: str) -> None:
    assert of_log(capture, name, code) == (reason, detail)


def test_no_captured_failure_is_left_without_its_name() -> None:
    """One more capture must be looked at, and not fall through to its exit code or to what followed from it."""
    served = {"start_serve", "start_serve_stop", "start_serve_drain"}
    unnamed = {"crashed", "engine_core_died"}
    captured = [(capture, log.stem) for capture in (VLLM, SGLANG, LLAMACPP) for log in (DATA / capture).glob("start_*")]
    failed = [(capture, name) for capture, name in captured if name not in served]
    assert len(failed) >= 15
    assert [one for one in failed if of_log(*one, 1)[0] in unnamed] == []


def test_an_engine_whose_core_was_killed_says_so_whatever_its_exit_code() -> None:
    """vLLM ends with 0 then, SGLang kills itself."""
    assert of_log(VLLM, "core_killed", 0, was_ready=True) == ("engine_core_died", "the engine's core process died")
    assert of_log(SGLANG, "scheduler_killed", 137, was_ready=True) == (
        "engine_core_died",
        "the engine's process scheduler_0 died, exit code -9",
    )


def test_a_server_that_was_killed_says_nothing() -> None:
    killed = ("killed", "the engine was ended by signal 9 (SIGKILL)")
    assert of_log(VLLM, "server_killed", 137, was_ready=True) == killed


@pytest.mark.parametrize(
    ("capture", "name"), [(VLLM, "drain"), (SGLANG, "start_serve_drain"), (LLAMACPP, "start_serve")]
)
@pytest.mark.parametrize("was_ready", [False, True])
def test_the_log_of_an_engine_that_fared_well_holds_no_reason(capture: str, name: str, was_ready: bool) -> None:
    assert of_log(capture, name, 1, was_ready=was_ready) == ("crashed", "the engine ended by itself, exit code 1")


# -- what was read -----------------------------------------------------------------------------------------------------

READ: list[dict[str, Any]] = yaml.safe_load((DATA / "failures" / "from_sources.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("entry", READ, ids=[f"{entry['engine']}-{entry['reason']}" for entry in READ])
def test_a_line_of_the_engines_sources_says_why(entry: dict[str, Any]) -> None:
    known = ENGINES[entry["engine"]].failure_lines
    found = diagnose(known, [entry["line"]], code=1, was_ready=entry.get("was_ready", False))
    assert (found.reason, found.detail) == (entry["reason"], entry["detail"])


# Project, version, file, line; and the projects whose words the engines print.
CITATION = re.compile(r"[A-Za-z][\w.-]* b?\d[\w.-]* [\w./-]+\.(?:c|cpp|cu|h|hpp|py|rs):[1-9]\d*")
LIBRARY = re.compile(r"CPython|coreutils|glibc|huggingface_hub|safetensors|torch|transformers|util-linux|uvicorn")


@pytest.mark.parametrize("entry", READ, ids=[f"{entry['engine']}-{entry['reason']}" for entry in READ])
def test_what_was_not_run_is_cited_to_the_line(entry: dict[str, Any]) -> None:
    """Whoever doubts a pattern finds the sentence in one step; what this project says itself is in its own tree."""
    assert set(entry) <= {"reason", "engine", "source", "own", "read", "seen", "was_ready", "line", "detail"}
    assert ("source" in entry) != ("own" in entry)
    if "own" in entry:
        assert entry["line"].startswith("llama-server: ")
        assert (DATA.parent.parent / entry["own"]).is_file()
        return
    assert CITATION.fullmatch(entry["source"]), entry["source"]
    project = entry["source"].partition(" ")[0]
    of_engine = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp"}[entry["engine"]]
    assert project == of_engine or LIBRARY.fullmatch(project)


def test_the_readme_names_what_was_not_run() -> None:
    captures = [(capture, log.stem) for capture in (VLLM, SGLANG, LLAMACPP) for log in (DATA / capture).glob("*.log")]
    run = {of_log(*one, 1)[0] for one in captures}
    run |= {entry["reason"] for entry in READ if "seen" in entry or "own" in entry}
    not_run = {entry["reason"] for entry in READ} - run
    words = " ".join((DATA.parent.parent / "README.md").read_text(encoding="utf-8").split())
    told = words.partition(" were not run here: ")[0].rpartition(". ")[2]
    assert set(re.findall(r"`(\w+)`", told)) == not_run


def test_every_known_line_has_an_example() -> None:
    """A pattern nobody has shown a line to is a guess."""
    lines = {name: [entry["line"] for entry in READ if entry["engine"] == name] for name in ENGINES}
    for capture in (VLLM, SGLANG, LLAMACPP):
        for log in sorted((DATA / capture).glob("*.log")):
            lines[capture.partition("-")[0]] += LineSplitter().feed(log.read_bytes() + b"\n")
    seen = [
        kind
        for name, engine in ENGINES.items()
        for kind in engine.failure_lines
        if any(re.match(kind.line, line) for line in lines[name])
    ]
    # The Python engines share most of theirs, and an example of one is an example of both.
    told = {(kind.reason, kind.says) for kind in seen}
    assert {(kind.reason, kind.says) for engine in ENGINES.values() for kind in engine.failure_lines} == told


# -- how the run ended -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        (None, "killed", "the engine container is gone without a word: killed, most often for lack of memory"),
        (0, "exited", "the engine ended by itself, exit code 0"),
        (1, "crashed", "the engine ended by itself, exit code 1"),
        (126, "command_not_found", "the engine's command cannot be run, exit code 126"),
        (127, "command_not_found", "the engine's command cannot be run, exit code 127"),
        (134, "crashed", "the engine was ended by signal 6 (SIGABRT)"),
        (135, "crashed", "the engine was ended by signal 7 (SIGBUS, most often a full /dev/shm)"),
        (137, "killed", "the engine was ended by signal 9 (SIGKILL)"),
        (139, "crashed", "the engine was ended by signal 11 (SIGSEGV)"),
        (255, "crashed", "the engine was ended by signal 127"),
    ],
)
def test_without_a_word_the_exit_code_decides(code: int | None, reason: str, detail: str) -> None:
    assert diagnose((), [], code=code, was_ready=False) == Diagnosis(Reason(reason), detail)


# -- which line counts -------------------------------------------------------------------------------------------------

STAMP = "(EngineCore pid=211) ERROR 11-22 19:11:35 [core.py:1510] "
OOM_SAID = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0"
OOM = STAMP + OOM_SAID
DEAD = "(APIServer pid=1) ERROR 11-22 18:52:38 [x.py:1] EngineDeadError: EngineCore encountered an issue"
NCCL_SAID = "torch.distributed.DistBackendError: NCCL error in: x.cpp:1"
NCCL = STAMP + NCCL_SAID


def of_lines(*lines: str, was_ready: bool = True, code: int | None = 1) -> str:
    return diagnose(ENGINES["vllm"].failure_lines, lines, code=code, was_ready=was_ready).reason


@pytest.mark.parametrize("process", ["EngineCore", "EngineCore_DP0", "Worker", "Worker_TP0", "VllmWorker-0"])
def test_an_error_counts_whichever_process_tells_it(process: str) -> None:
    """vLLM's worker has another name while it is made than it has later."""
    assert of_lines(f"({process} pid=7) ERROR 11-22 19:11:35 [multiproc_executor.py:953] {NCCL_SAID}") == "nccl_error"


def test_a_cause_is_told_and_not_what_followed_from_it() -> None:
    assert of_lines(OOM, DEAD) == "cuda_oom"
    assert of_lines(DEAD, OOM) == "cuda_oom"
    # One rank runs out of memory, the others miss it.
    assert of_lines(OOM, NCCL, DEAD) == "cuda_oom"
    assert of_lines(DEAD, DEAD) == "engine_core_died"


@pytest.mark.parametrize("code", [137, None])
def test_an_engine_that_was_killed_did_not_die_of_what_it_had_survived(code: int | None) -> None:
    survived = (
        "ERROR 11-22 19:11:35 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    assert of_lines(survived, *["INFO 11-22 23:00:00 [loggers.py:335] Engine 000"] * 99, code=code) == "cuda_oom"
    assert of_lines(survived, *["INFO 11-22 23:00:00 [loggers.py:335] Engine 000"] * 100, code=code) == "killed"
    assert of_lines(survived, *["INFO 11-22 23:00:00 [loggers.py:335] Engine 000"] * 100, code=1) == "cuda_oom"


def test_what_belongs_to_a_start_is_not_believed_of_an_engine_that_served() -> None:
    line = "OSError: [Errno 98] Address already in use"
    assert of_lines(line, was_ready=False) == "port_in_use"
    assert of_lines(line, was_ready=True) == "crashed"


# -- untrusted ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"INFO 11-22 18:52:38 [logger.py:1] Received request: prompt: '{OOM_SAID}'",
        f"(APIServer pid=1) INFO 11-22 18:52:38 [logger.py:1] {OOM_SAID}",
        f"> {OOM}",
        f"The user said: {OOM}",
        f" {OOM}",
        "Explain torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB",
    ],
)
def test_a_reason_within_a_line_is_no_reason(line: str) -> None:
    assert of_lines(line) == "crashed"


@pytest.mark.parametrize("code", [0, 1, 137, None])
@pytest.mark.parametrize(
    "line",
    [
        OOM_SAID,
        NCCL_SAID,
        f"(EngineCore pid=211) {OOM_SAID}",
        "RuntimeError: NCCL error: unhandled system error",
        "RuntimeError: unable to write to file </torch_213_2741_0>: No space left on device (28)",
        "OSError: [Errno 28] No space left on device",
        "  Value error, CUDA out of memory. Tried to allocate 1.00 GiB",
        "EngineDeadError: EngineCore encountered an issue",
        "Worker proc VllmWorker-0 died unexpectedly",
        "RuntimeError: Engine core initialization failed",
    ],
)
def test_a_prompt_of_several_lines_names_no_failure_of_a_vllm_that_served(line: str, code: int | None) -> None:
    """Printed past vLLM's logger, its lines begin like an error's; the logger's stamp of an error they do not have."""
    unsaid = diagnose((), [], code=code, was_ready=True).reason
    assert of_lines("INFO 11-22 18:52:38 [x.py:1] Received", line, "and more", code=code) == unsaid
    stamped = of_lines(STAMP + line, code=code)
    assert (stamped == unsaid) == line.startswith(("(EngineCore", "  Value error"))


def test_a_start_is_believed_without_a_stamp() -> None:
    """Nobody's prompt is in the log of an engine that has not served, and a traceback past the logger has no stamp."""
    assert of_lines(OOM_SAID, was_ready=False) == "cuda_oom"


def test_what_follows_a_flag_is_not_quoted() -> None:
    """A mistyped `--api-key=…` must not be read off `/health`."""
    for arguments in ("--api-kee=sk-secret", "--api-kee sk-secret"):
        found = diagnose(
            ENGINES["vllm"].failure_lines,
            [f"api_server.py: error: unrecognized arguments: {arguments}"],
            code=2,
            was_ready=False,
        )
        assert found == Diagnosis(Reason.UNKNOWN_ARGUMENT, "the engine does not know the argument --api-kee")


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.sampled_from([e["line"] for e in READ]).flatmap(lambda line: st.text().map(lambda t: line + t)),
        )
    ),
    st.sampled_from([None, 0, 1, 137]),
    st.booleans(),
)
def test_whatever_stands_in_the_log_the_answer_is_short_and_printable(
    lines: list[str], code: int | None, was_ready: bool
) -> None:
    for engine in ENGINES.values():
        found = diagnose(engine.failure_lines, lines, code=code, was_ready=was_ready)
        assert isinstance(found.reason, Reason)
        assert len(found.detail) < 250
        assert found.detail.isprintable()


def test_a_group_that_took_no_part_leaves_a_mark() -> None:
    known = [FailureLine(Reason.CRASHED, r"x(?P<y>y)?", "it was {y}")]
    assert diagnose(known, ["x"], code=1, was_ready=False).detail == "it was ?"


# -- advice ------------------------------------------------------------------------------------------------------------


def test_every_reason_has_a_hint_a_person_can_act_on() -> None:
    assert list(ADVICE) == list(Reason)
    for advice in ADVICE.values():
        assert advice.hint.endswith(".")
        assert 20 < len(advice.hint) < 250
        assert advice.hint.isascii()


def test_what_a_person_must_change_is_not_retryable() -> None:
    assert {reason.value for reason, advice in ADVICE.items() if advice.retryable} == {
        "model_unreachable",
        "gpu_memory_taken",
        "nccl_error",
        "port_in_use",
        "engine_core_died",
        "killed",
        "crashed",
        "exited",
        "load_timeout",
        "unresponsive",
    }
