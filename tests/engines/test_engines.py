"""What each engine is started with."""

from __future__ import annotations

import pytest

from wings_proxy.config.kinds import Choice
from wings_proxy.config.load import load_config
from wings_proxy.engines import ENGINES
from wings_proxy.engines.base import Engine

# The deployment wings-infer replaces: its seven variables, and the command it ran.
REFERENCE = {
    "ENGINE_TYPE": "vllm",
    "ENGINE_PORT": "8000",
    "WINGS_PORT": "9000",
    "MODEL_NAME": "DeepSeek-R1-Distill-Qwen-1.5B",
    "MODEL_PATH": "/models/DeepSeek-R1-Distill-Qwen-1.5B",
    "TP_SIZE": "1",
    "MAX_MODEL_LEN": "8192",
}


def argv(**environ: str) -> str:
    config = load_config({**REFERENCE, **environ})
    return "\n".join(ENGINES[config.engine_type].argv(config))


def words(text: str) -> str:
    return "\n".join(text.split())


def test_the_reference_variables_give_exactly_the_reference_vllm_command() -> None:
    assert argv() == words(
        "python3 -m vllm.entrypoints.openai.api_server --model /models/DeepSeek-R1-Distill-Qwen-1.5B "
        "--host 127.0.0.1 --port 8000 --tensor-parallel-size 1 --max-model-len 8192 --trust-remote-code "
        "--max-num-seqs 32"
    )


def test_sglang_gets_its_own_flags_and_never_vllms() -> None:
    command = argv(ENGINE_TYPE="sglang", SERVED_MODEL_NAME="r1")
    assert command == words(
        "python3 -m sglang.launch_server --model-path /models/DeepSeek-R1-Distill-Qwen-1.5B --host 127.0.0.1 "
        "--port 8000 --tp-size 1 --context-length 8192 --trust-remote-code --max-running-requests 32 "
        "--enable-metrics --served-model-name r1"
    )
    assert "--max-num-seqs" not in command


def test_llamacpp_is_told_the_context_of_all_slots_together() -> None:
    assert argv(ENGINE_TYPE="llamacpp", MODEL_PATH="/m/x.gguf", MAX_MODEL_LEN="2048", MAX_NUM_SEQS="4") == words(
        "llama-server -m /m/x.gguf --host 127.0.0.1 --port 8000 -c 8192 -np 4 --metrics "
        "--alias DeepSeek-R1-Distill-Qwen-1.5B"
    )


def test_a_served_name_is_given_and_remote_code_can_be_refused() -> None:
    command = argv(SERVED_MODEL_NAME="r1", TRUST_REMOTE_CODE="false")
    assert command.endswith(words("--max-num-seqs 32 --served-model-name r1"))
    assert "--trust-remote-code" not in command
    assert "--trust-remote-code" not in argv(ENGINE_TYPE="sglang", TRUST_REMOTE_CODE="false")


@pytest.mark.parametrize("extra", ["--max-num-seqs 8", "--max-num-seqs=8", "--max_num_seqs 8"])
def test_the_users_flag_replaces_ours(extra: str) -> None:
    command = argv(ENGINE_EXTRA_ARGS=f"--enforce-eager {extra}")
    assert command.endswith(words(f"--trust-remote-code --enforce-eager {extra}"))


def test_host_and_port_stay_ours_because_the_sidecar_must_find_the_engine() -> None:
    assert argv(ENGINE_EXTRA_ARGS="--port 1 --host=0.0.0.0").endswith(
        words("--port 1 --host=0.0.0.0 --host 127.0.0.1 --port 8000")
    )


def test_every_engine_type_of_the_configuration_is_known() -> None:
    assert ENGINES.keys() == {"vllm", "sglang", "llamacpp"}
    assert Choice(*ENGINES).allowed == "one of llamacpp, sglang, vllm"


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda engine: engine.name)
def test_no_administration_path_is_also_an_inference_path(engine: object) -> None:
    assert isinstance(engine, Engine)
    assert not engine.inference_paths & engine.admin_paths
    assert all(path.startswith("/") for path in engine.inference_paths | engine.admin_paths)
