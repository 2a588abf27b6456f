"""The command line, as a shell sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wings_proxy import __version__
from wings_proxy.cli import main

REFERENCE = {
    "ENGINE_TYPE": "vllm",
    "ENGINE_PORT": "8000",
    "WINGS_PORT": "9000",
    "MODEL_NAME": "DeepSeek-R1-Distill-Qwen-1.5B",
    "MODEL_PATH": "/models/DeepSeek-R1-Distill-Qwen-1.5B",
    "TP_SIZE": "1",
    "MAX_MODEL_LEN": "8192",
}
COMMAND = (
    "python3 -m vllm.entrypoints.openai.api_server --model /models/DeepSeek-R1-Distill-Qwen-1.5B --host 127.0.0.1 "
    "--port 8000 --tensor-parallel-size 1 --max-model-len 8192 --trust-remote-code --max-num-seqs 32"
)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wings_proxy", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent), **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_render_argv_is_the_reference_command_as_a_json_list() -> None:
    ended = run("render", "--argv", **REFERENCE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == COMMAND.split()


def test_render_prints_a_script_and_out_writes_the_same_one(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["render"], REFERENCE) == 0
    printed = capfdbinary.readouterr().out
    assert printed.startswith(b"#!/bin/sh\n")
    assert main(["render", "--out", str(tmp_path / "script.sh")], REFERENCE) == 0
    assert (tmp_path / "script.sh").read_bytes() == printed
    assert (tmp_path / "script.sh").stat().st_mode & 0o777 == 0o755


def test_a_script_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--out", str(tmp_path / "no" / "script.sh")], REFERENCE) == 1
    assert capsys.readouterr().err == f"--out {tmp_path}/no/script.sh: cannot be written: No such file or directory\n"


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "wings_proxy", "render"],
            env={**os.environ, **REFERENCE},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=100,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (
        1,
        b"standard output: cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("package", ["yaml", "aiohttp"])
def test_a_missing_package_is_one_line(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    ended = run("serve", PYTHONPATH=path, **REFERENCE)
    line = f"wings-proxy: No module named {package}: install wings-infer with pip, which brings what it needs\n"
    assert (ended.returncode, ended.stderr) == (1, line)


def test_the_asyncio_loop_does_without_uvloop(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ModuleNotFoundError('No module named uvloop')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    refused = {"WINGS_HOST": "127.0.0.1", "WINGS_PORT": "1", "WINGS_API_KEYS_FILE": str(tmp_path / "absent")}
    for loop, complaint in (("uvloop", "No module named uvloop"), ("asyncio", "WINGS_API_KEYS_FILE")):
        ended = run("serve", PYTHONPATH=path, WINGS_EVENT_LOOP=loop, **(REFERENCE | refused))
        assert complaint in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_hostile_values_arrive_as_one_argument_each(tmp_path: Path) -> None:
    recorder = tmp_path / "python3"
    recorder.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:], ensure_ascii=True))\n")
    recorder.chmod(0o755)
    hostile = "-x 'a' \"b\" $(touch /tmp/pwned) `id` ; & | * ~ \\ # 模型 \u00a0"
    script = tmp_path / "start_command.sh"
    assert (
        run("render", "--out", str(script), MODEL_PATH=hostile, MODEL_NAME="x", SERVED_MODEL_NAME=hostile).returncode
        == 0
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["sh", str(script)], env={"PATH": path}, capture_output=True, text=True, timeout=100, check=False
    )
    argv = json.loads(ended.stdout)
    assert argv[argv.index("--model") + 1] == hostile
    assert argv[argv.index("--served-model-name") + 1] == hostile


@pytest.mark.parametrize(("character", "name"), [("\r", "CR"), ("\n", "LF")])
@pytest.mark.parametrize("variable", ["MODEL_PATH", "SERVED_MODEL_NAME", "ENGINE_EXTRA_ARGS"])
def test_a_line_end_in_a_value_is_refused_with_its_name(
    capsys: pytest.CaptureFixture[str], variable: str, character: str, name: str
) -> None:
    assert main(["render"], {**REFERENCE, variable: f"a{character}b"}) == 2
    shown = {"\r": "\\r", "\n": "\\n"}[character]
    assert capsys.readouterr().err == f"{variable}=a{shown}b: must not contain {name}\n"


def test_every_mistake_is_one_line_and_nothing_is_started(tmp_path: Path) -> None:
    ended = run("serve", ENGINE_PORT="abc", WINGS_PROT="1", SHARED_VOLUME_PATH=str(tmp_path))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "WINGS_PROT=1: no such variable; did you mean WINGS_PORT?",
        "ENGINE_PORT=abc: must be a whole number from 1 to 65535",
        "MODEL_PATH is not set: path or hub id given to the engine",
    ]
    assert list(tmp_path.iterdir()) == []


def test_check_shows_every_setting_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "wings.yaml"
    file.write_text("engine:\n  tp_size: 2\n  env: {OMP_NUM_THREADS: 4}\n")
    ended = run("check", WINGS_CONFIG=str(file), MODEL_PATH="/m/x")
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()}
    assert rows["MODEL_PATH"] == ["/m/x", "env", "MODEL_PATH"]
    assert rows["TP_SIZE"] == ["2", "file", "engine.tp_size"]
    assert rows["engine.env"] == ["OMP_NUM_THREADS=4", "file", "engine.env"]
    assert rows["MAX_NUM_SEQS"] == ["32", "default"]


def test_version_and_help() -> None:
    assert run("--version").stdout == f"wings-proxy {__version__}\n"
    page = run("--help").stdout
    assert all(word in page for word in ("serve", "render", "check", "up", "MODEL_PATH", "WINGS_CONFIG"))
    assert run("nonsense").returncode == 2
