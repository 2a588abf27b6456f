"""`wings-proxy up`: one command, and afterwards nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from wings_proxy.up import StopSignals, up

STAND_IN = Path(__file__).with_name("stand_in_llama_server.py")
PATIENCE_SECONDS = 20.0


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[None]:
    """SIGHUP with its default effect, which children inherit: these tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_asks_and_the_second_forces(number: signal.Signals) -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            await stop.asked.wait()
        assert not stop.forced.is_set()

        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(5):
            await stop.forced.wait()


@pytest.mark.usefixtures("terminal")
async def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.asked.wait()
        assert not stop.forced.is_set()


# -- nothing is started --------------------------------------------------------------------------------------------


async def test_what_is_in_the_way_is_said_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code = await up(
            {
                **os.environ,
                "HOME": str(tmp_path),
                "WINGS_PORT": str(port),
                "MODEL_PATH": "/no/such.gguf",
                "PATH": f"{_programs(tmp_path)}:{os.environ['PATH']}",
            },
            ask=(),
            once=False,
        )

    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"wings-proxy: port {port} on 127.0.0.1: address already in use; set WINGS_PORT to another port",
        "wings-proxy: MODEL_PATH=/no/such.gguf: No such file or directory",
    ]
    assert not (tmp_path / ".local").exists()


# -- the whole tree, with a stand-in for the engine ----------------------------------------------------------------


def _programs(directory: Path) -> Path:
    """Return a directory with a `llama-server` in it."""
    programs = directory / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", str(STAND_IN)])} "$@"\n')
    program.chmod(0o755)
    return programs


class Up:
    """A running `wings-proxy up`; everything it starts is recognised by its HOME."""

    def __init__(self, directory: Path, ports: tuple[int, int], *arguments: str, **more: str) -> None:
        self._mark = f"HOME={directory}"
        self.url = f"http://127.0.0.1:{ports[0]}"
        (directory / "model.gguf").touch()
        self._errors = directory / "stderr"
        environ = {
            "HOME": str(directory),
            "PATH": f"{_programs(directory)}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "MODEL_PATH": str(directory / "model.gguf"),
            "WINGS_PORT": str(ports[0]),
            "ENGINE_PORT": str(ports[1]),
            **more,
        }
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "wings_proxy", "up", *arguments),
                env=environ,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def said(self) -> list[str]:
        return [line.removeprefix("wings-proxy: ") for line in self._errors.read_text().splitlines()]

    def ready(self) -> None:
        self.until(lambda: "stop:  Ctrl-C" in self.said)

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < deadline, self._errors.read_text()
            time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def processes(self) -> Mapping[int, str]:
        """Return the command line of every process of this run that is alive, `up` included."""
        found = {}
        for directory in Path("/proc").iterdir():
            # A process may end while it is looked at.
            with contextlib.suppress(OSError):
                if directory.name.isdecimal() and self._mark.encode() in (directory / "environ").read_bytes():
                    found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid(self, words: str) -> int | None:
        """Return the one process whose command line contains the words (the script has sub-shells: the first)."""
        return min((pid for pid, line in self.processes().items() if words in line), default=None)

    def directory(self) -> Path:
        """Return the private directory, of which the script's command line tells."""
        [script, *_] = [line for line in self.processes().values() if "start_command.sh" in line]
        return Path(script.split()[1]).parent.parent

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                body: dict[str, Any] = json.load(response)
                return body
        except OSError:
            return {}


Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> Iterator[Start]:
    ports = (unused_tcp_port_factory(), unused_tcp_port_factory())
    runs: list[Up] = []

    def start(*arguments: str, **more: str) -> Up:
        runs.append(Up(tmp_path, ports, *arguments, **more))
        return runs[-1]

    yield start
    for run in runs:
        for pid in run.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()
        assert run.process.stdout is not None
        run.process.stdout.close()


@pytest.mark.slow
def test_questions_are_answered_and_nothing_is_left(start: Start, tmp_path: Path) -> None:
    run = start("--once", "--ask", "Who?", "--ask", "Why?")

    output, _ = run.process.communicate(timeout=PATIENCE_SECONDS)

    assert run.process.returncode == 0
    assert output == "Hello 你好\nHello 你好\n"
    log = tmp_path / ".local" / "state" / "wings-infer" / f"engine-{run.url.rpartition(':')[2]}.log"
    assert run.said[:2] == ["model model.gguf, engine llamacpp", f"engine log {log}"]
    assert log.read_text().startswith("stand-in -m ")
    assert [line for line in run.said if line.startswith("first token after ") and ", 3 events with text" in line]
    assert run.said[-1] == "stopped"
    assert run.processes() == {}


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_both_cleanly(number: signal.Signals, start: Start) -> None:
    run = start()
    run.ready()
    directory = run.directory()
    assert directory.is_dir()

    assert run.end(number) == 0
    assert run.processes() == {}
    assert not directory.exists()
    assert run.said[-2:] == ["stopping; Ctrl-C again does not wait for requests", "stopped"]


@pytest.mark.slow
def test_a_killed_sidecar_comes_back_and_adopts_the_running_engine(start: Start) -> None:
    run = start()
    run.ready()
    sidecar, engine = run.pid("wings_proxy serve"), run.pid(STAND_IN.name)
    assert sidecar is not None
    before = run.health()["run"]

    os.kill(sidecar, signal.SIGKILL)
    run.until(lambda: run.pid("wings_proxy serve") not in (None, sidecar))
    run.until(lambda: run.health().get("state") == "ready")

    assert run.health()["run"] == before
    assert run.pid(STAND_IN.name) == engine
    assert "sidecar was ended by SIGKILL" in run.said
    assert run.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [STAND_IN.name, "start_command.sh"])
def test_a_killed_engine_or_its_script_is_started_again_without_orphans(victim: str, start: Start) -> None:
    run = start()
    run.ready()
    engine, killed = run.pid(STAND_IN.name), run.pid(victim)
    assert killed is not None

    os.kill(killed, signal.SIGKILL)
    run.until(lambda: run.pid(STAND_IN.name) not in (None, engine))
    run.until(lambda: run.health().get("restarts") == 1 and run.health()["state"] == "ready")

    assert engine not in run.processes()
    assert run.end() == 0
    assert run.processes() == {}


@pytest.mark.slow
def test_when_up_itself_is_killed_all_the_rest_ends_by_itself(start: Start) -> None:
    run = start()
    run.ready()
    directory = run.directory()

    run.end(signal.SIGKILL)
    run.until(lambda: not run.processes())
    assert directory.is_dir()

    following = start()
    following.ready()
    assert not directory.exists()
    assert following.end() == 0


@pytest.mark.slow
def test_a_request_in_flight_is_waited_for_until_the_second_signal(start: Start) -> None:
    run = start(STAND_IN="endless")
    run.ready()
    question = urllib.request.Request(f"{run.url}/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(question) as response:
        assert response.read(6) == b"data: "
        run.process.send_signal(signal.SIGINT)
        run.until(lambda: run.said[-1].startswith("stopping"))
        assert b"data: " in response.read(200)
        assert run.process.poll() is None

        assert run.end() == 130

    assert run.said[-2:] == ["ending everything at once", "stopped"]
    assert run.processes() == {}


@pytest.mark.slow
def test_an_engine_that_will_not_leave_is_killed(start: Start) -> None:
    run = start(STAND_IN="deaf", WINGS_ENGINE_STOP_SECONDS="1")
    run.ready()

    assert run.end() == 0
    assert run.processes() == {}


@pytest.mark.slow
def test_an_engine_that_never_starts_is_given_up_with_its_last_words(start: Start) -> None:
    run = start(STAND_IN="fail")

    assert run.process.wait(PATIENCE_SECONDS) == 1
    assert run.said.count("engine ended with code 3") == 3
    assert run.said.count("  | stand-in: no such luck") >= 3
    assert run.said[-2:] == ["engine failed 3 times without ever being ready: giving up", "stopped"]
    assert run.processes() == {}


@pytest.mark.slow
def test_a_sidecar_that_refuses_its_configuration_is_not_tried_again(start: Start) -> None:
    run = start(WINGS_API_KEYS_FILE="/no/such/keys")

    assert run.process.wait(PATIENCE_SECONDS) == 2
    assert any("/no/such/keys" in line for line in run.said)
    assert run.processes() == {}


@pytest.mark.slow
def test_questions_carry_a_key_when_the_sidecar_asks_for_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# the team\nsecret-1\n")
    run = start("--once", "--ask", "Who?", WINGS_API_KEYS_FILE=str(tmp_path / "keys"))

    output, _ = run.process.communicate(timeout=PATIENCE_SECONDS)

    assert (run.process.returncode, output) == (0, "Hello 你好\n")
    assert not any("secret-1" in line for line in run.said)


@pytest.mark.slow
def test_a_reader_of_the_answers_that_leaves_ends_the_run(start: Start) -> None:
    run = start("--ask", "Who?", "--ask", "Why?", STAND_IN="endless")
    assert run.process.stdout is not None
    assert run.process.stdout.read(5) == "Hello"

    run.process.stdout.close()

    assert run.process.wait(PATIENCE_SECONDS) == 1
    assert run.processes() == {}


# -- the real thing ------------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_a_real_model_answers_in_english_and_chinese(start: Start) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        assert not os.environ.get("CI"), "CI must run this: pip install '.[llamacpp]'"
        pytest.skip("needs xllamacpp: pip install '.[llamacpp]'")
    run = start(
        *(
            "--once",
            "--ask",
            "What is the capital of France, and what is it known for?",
            "--ask",
            "请用中文写一首关于春天的诗。",
        ),
        MODEL_PATH="",
        PATH=os.environ["PATH"],
        XDG_CACHE_HOME=os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    )

    output, _ = run.process.communicate(timeout=120)

    assert run.process.returncode == 0, run.said
    assert "Paris" in output
    assert "\ufffd" not in output
    assert any("\u4e00" <= character <= "\u9fff" for character in output)
    assert len([line for line in run.said if line.startswith("first token after ")]) == 2
    assert run.processes() == {}
