"""`wings-proxy up`: one command, and afterwards nothing is left of it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.readme import sample_lines
from tests.up_process import UpProcess
from wings_proxy.local.up import StopSignals, up

STAND_IN = Path(__file__).parents[1] / "stand_in_llama_server.py"


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
    now = 1000.0
    with StopSignals(lambda: now) as stop:
        os.kill(os.getpid(), number)
        async with asyncio.timeout(40):
            await stop.asked.wait()
        assert not stop.forced.is_set()

        now += 1
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(40):
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


async def test_what_is_in_the_way_is_said_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unused_tcp_port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code = await up(
            {
                **os.environ,
                "HOME": str(tmp_path),
                "WINGS_PORT": str(port),
                "ENGINE_PORT": str(unused_tcp_port),
                "MODEL_PATH": "/no/such.gguf",
                "PATH": f"{_programs(tmp_path)}:{os.environ['PATH']}",
            },
            ask=(),
            once=False,
        )

    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        (
            f"wings-proxy: WINGS_PORT={port} on WINGS_HOST=127.0.0.1: cannot listen: Address already in use; "
            "end the process that has it, or set WINGS_PORT to another port"
        ),
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


class Up(UpProcess):
    """A running `up` whose engine is the stand-in, or what PATH says."""

    def __init__(self, directory: Path, ports: tuple[int, int], *arguments: str, **more: str) -> None:
        (directory / "model.gguf").touch()
        environ = {
            "PATH": f"{_programs(directory)}:{os.environ['PATH']}",
            "MODEL_PATH": str(directory / "model.gguf"),
            "ENGINE_PORT": str(ports[1]),
            **more,
        }
        super().__init__(directory, ports[0], *arguments, **environ)

    def directory(self) -> Path:
        """Return the private directory, of which the script's command line tells."""
        [script, *_] = [line for line in self.processes().values() if "start_command.sh" in line]
        return Path(script.split()[1]).parent.parent


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
        run.kill()


@pytest.mark.slow
def test_questions_are_answered_and_nothing_is_left(start: Start, tmp_path: Path) -> None:
    run = start("--once", "--ask", "Who?", "--ask", "Why?")

    output, _ = run.process.communicate(timeout=Up.patience_seconds)

    assert run.process.returncode == 0
    assert output == "Hello 你好\nHello 你好\n"
    log = tmp_path / ".local" / "state" / "wings-infer" / f"engine-{run.url.rpartition(':')[2]}.log"
    assert run.said[:2] == ["model model.gguf, engine llamacpp", f"engine log {log}"]
    assert log.read_text().startswith("stand-in -m ")
    assert [line for line in run.said if line.startswith("first token after ") and ", 3 events with text" in line]
    assert run.said[-1] == "stopped"
    # What to try next is nothing for somebody whose run is over.
    assert not [line for line in run.said if line.startswith(("ready:", "try:", "stop:"))]
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
def test_the_last_lines_are_those_that_the_readme_shows(start: Start) -> None:
    run = start()
    run.ready()
    assert run.end() == 0
    printed = [line.replace(run.url, "http://127.0.0.1:9000") for line in run.story().splitlines()]
    shown = sample_lines()
    assert len(shown) == 3
    first = next(number for number, line in enumerate(printed) if line.startswith("wings-proxy: ready: "))
    lines = printed[first : first + len(shown)]
    assert [line[: len(begin)] for line, begin in zip(lines, shown, strict=True)] == shown
    # Until somebody ends it, nothing comes after them.
    assert printed[first + len(shown)] == "wings-proxy: stopping; Ctrl-C again does not wait for requests"


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

        time.sleep(0.6)  # sooner it would be taken for the first one's echo
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

    assert run.process.wait(Up.patience_seconds) == 1
    assert run.said.count("engine ended with code 3") == 3
    assert run.said.count("  | stand-in: no such luck") >= 3
    assert run.said[-2:] == ["engine failed 3 times without ever being ready: giving up", "stopped"]
    assert run.processes() == {}


@pytest.mark.slow
def test_an_engine_that_did_not_take_its_arguments_is_not_asked_again(start: Start) -> None:
    run = start(STAND_IN="usage")

    assert run.process.wait(Up.patience_seconds) == 1
    assert [line for line in run.said if line.startswith("engine ended")] == ["engine ended with code 2"]
    [failed] = [line for line in run.said if line.startswith("engine failed")]
    assert "--gpu-memory" in failed
    assert failed.endswith("Correct ENGINE_EXTRA_ARGS, or use an engine version that knows the argument.")
    assert run.said[-2:] == ["engine would fail so again: giving up", "stopped"]
    assert run.processes() == {}


def test_keys_that_cannot_be_used_are_said_before_anything_starts(start: Start) -> None:
    run = start(WINGS_API_KEYS_FILE="/no/such/keys")

    assert run.process.wait(Up.patience_seconds) == 2
    assert run.said == ["WINGS_API_KEYS_FILE=/no/such/keys: cannot be read: No such file or directory"]
    assert run.processes() == {}


@pytest.mark.slow
def test_a_sidecar_that_refuses_its_configuration_is_not_tried_again(start: Start, tmp_path: Path) -> None:
    configuration = tmp_path / "wings.yaml"
    configuration.write_text("log: {level: debug}\n")
    run = start(WINGS_CONFIG=str(configuration))
    run.ready()
    sidecar = run.pid("wings_proxy serve")
    assert sidecar is not None

    configuration.write_text("nonsense: 1\n")
    os.kill(sidecar, signal.SIGKILL)

    assert run.process.wait(Up.patience_seconds) == 2
    assert "sidecar ended with code 2" in run.said
    assert any("nonsense: no such key" in line for line in run.said)
    assert run.processes() == {}


@pytest.mark.slow
def test_questions_carry_a_key_when_the_sidecar_asks_for_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# the team\nsecret-1\n")
    run = start("--once", "--ask", "Who?", WINGS_API_KEYS_FILE=str(tmp_path / "keys"))

    output, _ = run.process.communicate(timeout=Up.patience_seconds)

    assert (run.process.returncode, output) == (0, "Hello 你好\n")
    assert not any("secret-1" in line for line in run.said)


@pytest.mark.slow
def test_a_reader_of_the_answers_that_leaves_ends_the_run(start: Start) -> None:
    run = start("--ask", "Who?", "--ask", "Why?", STAND_IN="endless")
    assert run.process.stdout is not None
    assert run.process.stdout.read(5) == "Hello"

    run.process.stdout.close()

    assert run.process.wait(Up.patience_seconds) == 1
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
