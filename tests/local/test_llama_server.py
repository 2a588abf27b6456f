"""The stand-in for llama-server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from wings_proxy.engines import ENGINES
from wings_proxy.engines.failure_reasons import diagnose
from wings_proxy.lifecycle.engine_log import LineSplitter
from wings_proxy.local.default_model import DEFAULT_MODEL, ensure_model
from wings_proxy.local.llama_server import api_keys, default_threads, fill, make_parser

PROGRAM = (sys.executable, "-m", "wings_proxy.local.llama_server")


def parameters() -> SimpleNamespace:
    """An object with the nested fields of llama.cpp's `common_params`."""
    return SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())


def filled(*arguments: str) -> SimpleNamespace:
    result = parameters()
    fill(result, make_parser().parse_args(arguments))
    return result


def test_the_flags_of_the_launch_script_reach_llama_cpp() -> None:
    result = filled(
        *("-m", "/models/a.gguf", "--host", "127.0.0.1", "--port", "8000", "-c", "8192", "-np", "4"),
        *("--metrics", "--alias", "SmolLM2"),
    )

    assert result.model.path == "/models/a.gguf"
    assert (result.hostnames, result.port) == (["127.0.0.1"], 8000)
    assert (result.n_ctx, result.n_parallel) == (8192, 4)
    assert result.endpoint_metrics is True
    assert result.model_alias == {"SmolLM2"}


def test_long_names_mean_the_same() -> None:
    result = filled("--model", "a", "--ctx-size", "512", "--parallel", "2", "--threads", "3", "--gpu-layers", "7")

    assert (result.n_ctx, result.n_parallel, result.n_gpu_layers) == (512, 2, 7)
    assert (result.cpuparams.n_threads, result.cpuparams_batch.n_threads) == (3, 3)


def test_unset_flags_leave_llama_servers_defaults() -> None:
    result = filled("-m", "a")

    assert (result.hostnames, result.port, result.n_ctx, result.n_parallel) == (["127.0.0.1"], 8080, 0, 1)
    assert (result.endpoint_metrics, result.endpoint_slots, result.warmup, result.use_jinja) == (
        False,
        True,
        True,
        True,
    )
    assert (result.api_keys, result.model_alias) == ([], set())
    assert not hasattr(result, "n_gpu_layers")


def test_keys_of_both_flags(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("c\n\n d \n", encoding="utf-8")

    assert api_keys(make_parser().parse_args(["-m", "a", "--api-key", "a,b", "--api-key-file", str(file)])) == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_half_of_the_cpus_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, threads in [(1, 1), (2, 1), (3, 1), (8, 4)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cpus=cpus: set(range(cpus)))
        assert default_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-m", "a", "--flash"], "llama-server: unrecognized arguments: --flash (see llama-server --help)\n"),
        (["-m", "a", "--paral", "2"], "llama-server: unrecognized arguments: --paral 2 (see llama-server --help)\n"),
        ([], "llama-server: the following arguments are required: -m/--model (see llama-server --help)\n"),
        (
            ["-m", "a", "-c", "x"],
            "llama-server: argument -c/--ctx-size: invalid int value: 'x' (see llama-server --help)\n",
        ),
        (
            ["-m", "a", "-c", "10000000000"],
            (
                "llama-server: argument -c/--ctx-size: invalid int value: 10000000000 is beyond 2147483647 "
                "(see llama-server --help)\n"
            ),
        ),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(arguments)

    assert ended.value.code == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (
            "raise ModuleNotFoundError('No module named xllamacpp')",
            "No module named xllamacpp: install it with pip install 'wings-infer[llamacpp]'",
        ),
        (
            "raise ImportError('libgomp.so.1: cannot open shared object file')",
            (
                "libgomp.so.1: cannot open shared object file: llama.cpp needs this library of the system "
                "(Debian: apt install libgomp1)"
            ),
        ),
    ],
)
def test_what_is_missing_is_named_with_what_brings_it(tmp_path: Path, module: str, line: str) -> None:
    (tmp_path / "xllamacpp.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), *sys.path])

    result = subprocess.run(
        (*PROGRAM, "-m", "a.gguf"), env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )

    assert (result.returncode, result.stdout) == (1, f"llama-server: {line}\n")


# -- the real thing ------------------------------------------------------------------------------------------------


@pytest.fixture
def xllamacpp() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        assert not os.environ.get("CI"), "CI must run these: pip install '.[llamacpp]'"
        pytest.skip("needs xllamacpp: pip install '.[llamacpp]'")


@contextlib.asynccontextmanager
async def serving(port: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A llama-server with the default model; ends it by SIGKILL if the test did not."""
    model = await ensure_model(os.environ, print)
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *("-m", str(model), "--port", str(port), "-c", "2048", "-np", "2", "--metrics", "--alias", DEFAULT_MODEL.name),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def healthy(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


@pytest.mark.engine
async def test_a_real_model_answers_and_leaves_at_sigterm(xllamacpp: None, unused_tcp_port: int) -> None:
    async with serving(unused_tcp_port) as (process, url), aiohttp.ClientSession() as session:
        await healthy(session, url)
        question = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 16}
        async with session.post(f"{url}/v1/chat/completions", json=question) as response:
            answer = await response.json()
        async with session.get(f"{url}/metrics") as response:
            metrics = await response.text()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(40):
            output, errors = await process.communicate()

    assert answer["model"] == DEFAULT_MODEL.name
    assert answer["usage"]["completion_tokens"] > 0
    assert "\ufffd" not in answer["choices"][0]["message"]["content"]
    assert "llamacpp:tokens_predicted_total" in metrics
    assert process.returncode == 0
    assert output.decode().endswith("llama-server: stopped\n")
    assert errors == b""


@pytest.mark.engine
def test_a_file_that_is_no_model_ends_it_with_a_line(xllamacpp: None, tmp_path: Path, unused_tcp_port: int) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF" + bytes(100))

    result = subprocess.run(
        (*PROGRAM, "-m", str(model), "--port", str(unused_tcp_port)), capture_output=True, text=True
    )

    assert result.returncode == 1
    assert f"llama-server: cannot serve {model} on port {unused_tcp_port}: " in result.stdout.splitlines()[-1]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("content", "flags", "reason"),
    [
        (None, (), "model_not_found"),
        (b"no model at all", (), "weights_corrupt"),
        (b"", (), "weights_corrupt"),
        (b"GGUF" + bytes(100), (), "weights_corrupt"),
        (b"", ("--no-such-flag",), "unknown_argument"),
        (b"", ("-np", "many"), "invalid_argument"),
    ],
)
def test_what_the_real_one_says_of_a_failed_start_has_a_name(
    xllamacpp: None, tmp_path: Path, unused_tcp_port: int, content: bytes | None, flags: tuple[str, ...], reason: str
) -> None:
    model = tmp_path / "a.gguf"
    if content is not None:
        model.write_bytes(content)
    assert ended(model, unused_tcp_port, *flags) == reason


@pytest.mark.engine
def test_a_directory_is_not_called_a_damaged_file(xllamacpp: None, tmp_path: Path, unused_tcp_port: int) -> None:
    assert ended(tmp_path, unused_tcp_port) == "model_not_found"


@pytest.mark.engine
def test_what_the_real_one_says_of_a_taken_port_has_a_name(xllamacpp: None, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        assert ended(tmp_path / "a.gguf", somebody.getsockname()[1]) == "port_in_use"


def ended(model: Path, port: int, *flags: str) -> str:
    """Start the real llama-server, which cannot serve, and return what its end is called."""
    result = subprocess.run(
        (*PROGRAM, "-m", str(model), "--port", str(port), *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=100,
    )
    lines = LineSplitter().feed(result.stdout + b"\n")
    return diagnose(ENGINES["llamacpp"].failure_lines, lines, code=result.returncode, was_ready=False).reason


def test_its_help_needs_neither_model_nor_engine() -> None:
    result = subprocess.run((*PROGRAM, "--help"), capture_output=True, text=True, check=True)

    assert "--ctx-size" in result.stdout
    assert result.stderr == ""
