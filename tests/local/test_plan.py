"""What `up` is going to run, and what is in its way."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from wings_proxy.config.load import ConfigError
from wings_proxy.local.plan import llama_shim, make_plan, obstacles, program

MODEL_IN_CACHE = "/home/ada/.cache/wings-infer/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def environ(**more: str) -> Mapping[str, str]:
    return {"HOME": "/home/ada", "PATH": "/usr/bin:/bin", **more}


def program_named(name: str, directory: Path, text: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


# -- the choice ----------------------------------------------------------------------------------------------------


def test_nothing_said_means_the_small_model_on_llama_cpp() -> None:
    plan = make_plan(environ())

    assert plan.default_model
    assert plan.llama_shim
    assert (plan.config.engine_type, plan.config.model_path) == ("llamacpp", MODEL_IN_CACHE)
    assert plan.config.model_name == "SmolLM2-135M-Instruct"
    assert (plan.config.max_model_len, plan.config.max_num_seqs) == (2048, 4)
    assert (plan.config.host, plan.config.port, plan.config.engine_port) == ("127.0.0.1", 9000, 8000)
    assert plan.config.quiet_seconds == 0


@pytest.mark.parametrize(
    ("said", "engine", "default_model"),
    [
        ({"MODEL_PATH": "/m/a.gguf"}, "llamacpp", False),
        ({"MODEL_PATH": "/m/A.GGUF"}, "llamacpp", False),
        ({"MODEL_PATH": "Qwen/Qwen3-0.6B"}, "vllm", False),
        ({"MODEL_PATH": "/m/a.gguf", "ENGINE_TYPE": "vllm"}, "vllm", False),
        ({"MODEL_PATH": "/m/a", "ENGINE_TYPE": "sglang"}, "sglang", False),
        ({"ENGINE_TYPE": "llamacpp"}, "llamacpp", True),
        ({"ENGINE_TYPE": "", "MODEL_PATH": ""}, "llamacpp", True),
    ],
)
def test_the_engine_is_named_or_follows_from_the_model(
    said: Mapping[str, str], engine: str, default_model: bool
) -> None:
    plan = make_plan(environ(**said))

    assert (plan.config.engine_type, plan.default_model) == (engine, default_model)


def test_a_named_engine_without_a_default_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="MODEL_PATH is not set"):
        make_plan(environ(ENGINE_TYPE="vllm"))


def test_what_was_said_wins_over_the_defaults_of_up() -> None:
    config = make_plan(
        environ(MAX_MODEL_LEN="512", MAX_NUM_SEQS="2", WINGS_HOST="0.0.0.0", WINGS_QUIET_SECONDS="1", MODEL_NAME="tiny")
    ).config

    assert (config.max_model_len, config.max_num_seqs, config.host) == (512, 2, "0.0.0.0")
    assert (config.quiet_seconds, config.model_name) == (1, "tiny")


def test_the_file_wins_over_them_too(tmp_path: Path) -> None:
    file = tmp_path / "wings.yaml"
    file.write_text("model: {path: /m/a.gguf, max_len: 512}\nserver: {host: 127.0.0.2}\n", encoding="utf-8")

    config = make_plan(environ(WINGS_CONFIG=str(file))).config

    assert (config.engine_type, config.model_path, config.max_model_len) == ("llamacpp", "/m/a.gguf", 512)
    assert (config.host, config.max_num_seqs) == ("127.0.0.2", 4)


def test_the_defaults_of_up_are_llama_cpps_alone() -> None:
    config = make_plan(environ(MODEL_PATH="/m/qwen")).config

    assert (config.max_model_len, config.max_num_seqs) == (4096, 32)


def test_everything_wrong_is_reported_as_serve_would(tmp_path: Path) -> None:
    file = tmp_path / "wings.yaml"
    file.write_text("model: [", encoding="utf-8")

    with pytest.raises(ConfigError) as raised:
        make_plan(environ(WINGS_CONFIG=str(file), WINGS_PORT="x"))

    assert len(raised.value.problems) == 2


def test_a_real_llama_server_is_preferred(tmp_path: Path) -> None:
    program_named("llama-server", tmp_path / "bin")

    assert not make_plan(environ(PATH=f"{tmp_path}/bin:/usr/bin")).llama_shim


# -- the obstacles -------------------------------------------------------------------------------------------------


@pytest.fixture
def free_ports(unused_tcp_port_factory: object) -> Mapping[str, str]:
    assert callable(unused_tcp_port_factory)
    return {"WINGS_PORT": str(unused_tcp_port_factory()), "ENGINE_PORT": str(unused_tcp_port_factory())}


@pytest.fixture
def with_xllamacpp(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make exactly the modules of this list look installed."""
    installed = ["xllamacpp"]

    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, None) if name in installed else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return installed


def test_nothing_in_the_way(free_ports: Mapping[str, str], with_xllamacpp: list[str]) -> None:
    assert list(obstacles(make_plan(environ(**free_ports)))) == []


def test_missing_llama_cpp_is_said_with_its_cure(free_ports: Mapping[str, str], with_xllamacpp: list[str]) -> None:
    with_xllamacpp.clear()

    assert list(obstacles(make_plan(environ(**free_ports)))) == [
        "llama.cpp is not installed: pip install 'wings-infer[llamacpp]', or put its llama-server on PATH"
    ]


@pytest.mark.parametrize("variable", ["WINGS_PORT", "ENGINE_PORT"])
def test_a_taken_port_is_said_with_its_variable(
    variable: str, free_ports: Mapping[str, str], with_xllamacpp: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        assert list(obstacles(make_plan(environ(**{**free_ports, variable: str(port)})))) == [
            (
                f"{variable}={port}{' on WINGS_HOST=127.0.0.1' if variable == 'WINGS_PORT' else ''}: cannot listen: "
                f"Address already in use; end the process that has it, or set {variable} to another port"
            )
        ]


def test_a_port_with_old_connections_is_free(free_ports: Mapping[str, str], with_xllamacpp: list[str]) -> None:
    with (
        socket.create_server(("127.0.0.1", int(free_ports["WINGS_PORT"]))) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        accepted.close()  # first, so that this port is the one in TIME_WAIT
        client.recv(1)

    assert list(obstacles(make_plan(environ(**free_ports)))) == []


def test_an_address_that_is_not_ours_is_said(free_ports: Mapping[str, str], with_xllamacpp: list[str]) -> None:
    [line] = obstacles(make_plan(environ(**free_ports, WINGS_HOST="192.0.2.1")))

    assert line == (
        f"WINGS_PORT={free_ports['WINGS_PORT']} on WINGS_HOST=192.0.2.1: cannot listen: "
        "Cannot assign requested address; set WINGS_HOST to an address of this machine, or to none for all of them"
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing.gguf", "No such file or directory"),
        ("directory.gguf", "llama.cpp needs a GGUF file, this is a directory or a special file"),
    ],
)
def test_a_model_that_is_not_there_is_said(
    path: str, why: str, tmp_path: Path, free_ports: Mapping[str, str], with_xllamacpp: list[str]
) -> None:
    (tmp_path / "directory.gguf").mkdir()

    assert list(obstacles(make_plan(environ(**free_ports, MODEL_PATH=f"{tmp_path}/{path}")))) == [
        f"MODEL_PATH={tmp_path}/{path}: {why}"
    ]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_python_of_path_must_have_the_engine(engine: str, tmp_path: Path, free_ports: Mapping[str, str]) -> None:
    python = program_named("python3", tmp_path / "bin", f'exec {shlex.quote(sys.executable)} -I "$@"')
    path = f"{tmp_path}/bin:/usr/bin:/bin"

    lines = list(obstacles(make_plan(environ(**free_ports, ENGINE_TYPE=engine, MODEL_PATH="some/model", PATH=path))))

    [line] = lines
    assert line == (
        f"ENGINE_TYPE={engine}: {python}, the first python3 on PATH, has no module {engine}: "
        "activate the environment it is installed in"
    )


def test_a_python_that_has_it_is_enough_and_a_hub_id_is_no_path(tmp_path: Path, free_ports: Mapping[str, str]) -> None:
    program_named("python3", tmp_path / "bin", "exit 0")

    plan = make_plan(environ(**free_ports, MODEL_PATH="Qwen/Qwen3-0.6B", PATH=f"{tmp_path}/bin:/usr/bin:/bin"))

    assert list(obstacles(plan)) == []


def test_a_local_path_that_is_not_there_is_no_hub_id(tmp_path: Path, free_ports: Mapping[str, str]) -> None:
    program_named("python3", tmp_path / "bin", "exit 0")

    plan = make_plan(environ(**free_ports, MODEL_PATH="/no/such", PATH=f"{tmp_path}/bin:/usr/bin:/bin"))

    assert list(obstacles(plan)) == ["MODEL_PATH=/no/such: No such file or directory"]


@pytest.mark.parametrize(
    ("engine", "path", "why"),
    [
        (
            "llamacpp",
            "Qwen/Qwen3-0.6B",
            "No such file or directory: llama.cpp needs a GGUF file that is on this machine",
        ),
        ("llamacpp", "~/x.gguf", "No such file or directory: only a shell knows what ~ is; write the whole path"),
        ("vllm", "~/x", "No such file or directory: only a shell knows what ~ is; write the whole path"),
        ("vllm", "/etc", "is no model's directory: there is no config.json in it"),
        ("vllm", "/dev/null", "is neither a file nor a directory"),
    ],
)
def test_what_is_no_model_for_this_engine_is_said(
    engine: str, path: str, why: str, tmp_path: Path, free_ports: Mapping[str, str], with_xllamacpp: list[str]
) -> None:
    program_named("python3", tmp_path / "bin", "exit 0")
    search = f"{tmp_path}/bin:/usr/bin:/bin"

    plan = make_plan(environ(**free_ports, ENGINE_TYPE=engine, MODEL_PATH=path, PATH=search))

    assert list(obstacles(plan)) == [f"MODEL_PATH={path}: {why}"]


@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_a_models_directory_is_one(name: str, tmp_path: Path, free_ports: Mapping[str, str]) -> None:
    program_named("python3", tmp_path / "bin", "exit 0")
    (tmp_path / name).touch()

    plan = make_plan(environ(**free_ports, MODEL_PATH=str(tmp_path), PATH=f"{tmp_path}/bin:/usr/bin:/bin"))

    assert list(obstacles(plan)) == []


def test_a_key_file_without_keys_is_said_before_anything_starts(
    tmp_path: Path, free_ports: Mapping[str, str], with_xllamacpp: list[str]
) -> None:
    (tmp_path / "keys").touch()
    plan = make_plan(environ(**free_ports, WINGS_API_KEYS_FILE=f"{tmp_path}/keys"))
    assert list(obstacles(plan)) == [f"WINGS_API_KEYS_FILE={tmp_path}/keys: no key in it"]


def test_a_variable_that_is_nearly_one_of_ours_is_told(free_ports: Mapping[str, str]) -> None:
    assert make_plan(environ(**free_ports, MODLE_PATH="/m/x.gguf")).warnings == (
        "MODLE_PATH=/m/x.gguf: is not read; did you mean MODEL_PATH?",
    )


def test_missing_tools_are_named(tmp_path: Path, free_ports: Mapping[str, str], with_xllamacpp: list[str]) -> None:
    for tool in ("sh", "stat", "mkfifo", "mv", "rm", "dd", "tee", "timeout", "date", "env", "sleep", "cat"):
        program_named(tool, tmp_path / "bin")

    assert list(obstacles(make_plan(environ(**free_ports, PATH=f"{tmp_path}/bin")))) == [
        "setsid is not on PATH: install coreutils and util-linux"
    ]


# -- the programs --------------------------------------------------------------------------------------------------


def test_our_modules_are_not_taken_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert program("wings_proxy") == (sys.executable, "-P", "-m", "wings_proxy")


def test_but_from_a_source_tree_that_is_the_current_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])

    assert program("wings_proxy") == (sys.executable, "-m", "wings_proxy")


def test_the_shim_is_llama_server_with_the_arguments_untouched(tmp_path: Path) -> None:
    shim = program_named("llama-server", tmp_path)
    shim.write_text(llama_shim(), encoding="utf-8")

    result = subprocess.run((shim, "-m", "a model", "--oops; $(false)"), capture_output=True, text=True)

    assert result.returncode == 2
    assert result.stderr == "llama-server: unrecognized arguments: --oops; $(false) (see llama-server --help)\n"
