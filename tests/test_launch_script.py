"""The launch script run for real, by every shell at hand, around small engines that misbehave."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.engine_container import SHELLS, Container
from tests.processes import catches
from wings_proxy.handover.engine_status import EngineStatus, Phase
from wings_proxy.handover.launch import engine_stub

pytestmark = pytest.mark.slow

# All the script may need beside the shell itself: coreutils, and setsid of util-linux.
TOOLS = [
    "cat",
    "date",
    "dd",
    "env",
    "mkfifo",
    "mv",
    "printf",
    "rm",
    "sleep",
    "stat",
    "tee",
    "timeout",
    "true",
    "setsid",
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and other users need root")

# Engines, in Python. Each says "up" when it is ready to be treated badly; os.write, because a signal handler may not
# print while its program does.
IDLE = "import time; print('up', flush=True); time.sleep(60)"
STOPS_WELL = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"down\\n"), os._exit(int(sys.argv[1]))))
os.write(1, b"up\\n")
time.sleep(60)
"""
IGNORES_TERM = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
DIES_WHEN_TOLD = """
import os, sys, time
print("up", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.002)
sys.exit(int(sys.argv[2]))
"""
# Like vLLM: a server with a core process that survives it, and holds on to its output. One that leaves the group is
# out of reach for everybody but the end of the container.
LEAVES_CORE = """
import os, subprocess, sys, time
core = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-ISc", core, *sys.argv[3:]], start_new_session=sys.argv[1] == "leaves the group")
while not os.path.exists(sys.argv[2]): time.sleep(0.002)
os._exit(0)
"""


# Like Python's resource tracker: it outlives its process for a moment, to clean up.
LEAVES_CLEANER = """
import os, signal, subprocess, sys, time
cleaner = "import os, sys, time; sys.stdin.read(); time.sleep(0.3); os.unlink(sys.argv[1])"
held = subprocess.Popen([sys.executable, "-ISc", cleaner, sys.argv[1]], stdin=subprocess.PIPE)
signal.signal(15, lambda *_: os._exit(0))
print("up", flush=True)
while True: time.sleep(60)
"""


# Like vLLM: a server and a core that share memory, which is no file of theirs; what they made, Python's tracker removes
# when the last of them is gone.
SHARES_MEMORY = """
import multiprocessing, os, sys, time
from multiprocessing.shared_memory import SharedMemory
def core(name):
    memory = SharedMemory(name)
    os.write(1, b"up\\n")
    time.sleep(60)
memory = SharedMemory(create=True, size=4096)
open(sys.argv[1] + ".new", "w").write(f"{memory.name} {os.getpid()}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
multiprocessing.get_context("fork").Process(target=core, args=(memory.name,)).start()
time.sleep(60)
"""


# bash as it is where it is /bin/sh; test_launch.py has a run of plain bash.
@pytest.fixture(params=[shell for shell in SHELLS if shell != "bash"])
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Container]:
    container = Container(request.param, tmp_path)
    yield container
    container.clear()


def ended(container: Container) -> tuple[Phase, bool, int | None]:
    status = container.status()
    assert status is not None
    return status.phase, status.asked, status.code


def running(container: Container) -> EngineStatus:
    status = container.status()
    assert status is not None
    assert status.phase is Phase.RUNNING
    return status


# An end nobody asked for


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (3, 3), (137, 137), (255, 255)])
def test_a_crash_keeps_its_code(container: Container, code: int, exit_code: int) -> None:
    container.publish("sh", "-c", f"exit {code}")
    assert container.start().wait(40) == exit_code
    assert ended(container) == (Phase.EXITED, False, code)


def test_a_clean_exit_nobody_asked_for_is_a_failure(container: Container) -> None:
    container.publish("true")
    assert container.start().wait(40) == 1
    assert ended(container) == (Phase.EXITED, False, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_death_by_signal_is_128_and_its_number(container: Container, number: signal.Signals) -> None:
    container.publish("sh", "-c", f"kill -s {number.name[3:]} $$")
    assert container.start().wait(40) == 128 + number
    assert ended(container) == (Phase.EXITED, False, 128 + number)


def test_a_command_that_is_not_there(container: Container) -> None:
    container.publish("no-such-engine")
    assert container.start().wait(40) == 127
    assert ended(container) == (Phase.EXITED, False, 127)
    assert b"no-such-engine" in container.log()


def test_a_command_that_cannot_be_run(container: Container) -> None:
    (container.root / "engine").touch(0o644)
    container.publish(str(container.root / "engine"))
    assert container.start().wait(40) == 126
    assert ended(container) == (Phase.EXITED, False, 126)


def test_the_core_a_dead_server_leaves_behind_is_killed(container: Container) -> None:
    told = container.root / "told"
    process = container.run(LEAVES_CORE, "stays", str(told))
    told.touch()
    assert process.wait(40) == 1
    assert ended(container) == (Phase.EXITED, False, 0)
    container.until(lambda: not container.left_behind())


def test_what_cleans_up_after_an_engine_asked_to_stop_has_a_moment_for_it(container: Container) -> None:
    shared_memory = container.root / "shared-memory"
    shared_memory.touch()
    process = container.run(LEAVES_CLEANER, str(shared_memory))
    process.terminate()
    assert process.wait(40) == 0
    assert not shared_memory.exists()
    container.until(lambda: not container.left_behind())


def test_shared_memory_goes_with_an_engine_that_was_killed(container: Container) -> None:
    told = container.root / "told"
    process = container.run(SHARES_MEMORY, str(told))
    name, server = told.read_text().split()
    assert Path("/dev/shm", name).exists()
    os.kill(int(server), signal.SIGKILL)
    assert process.wait(20) == 137
    assert ended(container) == (Phase.EXITED, False, 137)
    assert not Path("/dev/shm", name).exists()
    container.until(lambda: not container.left_behind())


def test_a_tracker_that_does_not_end_is_killed_in_the_end(container: Container) -> None:
    told = container.root / "told"
    process = container.run(LEAVES_CORE, "stays", str(told), "multiprocessing.resource_tracker")
    told.touch()
    assert process.wait(20) == 1
    container.until(lambda: not container.left_behind())


def test_a_process_that_left_the_group_cannot_hold_up_the_end(container: Container) -> None:
    told = container.root / "told"
    process = container.run(LEAVES_CORE, "leaves the group", str(told))
    told.touch()
    container.until(lambda: ended(container) == (Phase.EXITED, False, 0))
    assert process.wait(40) == 1
    assert container.left_behind(), "it was waited for"


# A stop somebody asked for


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_asked_stop_ends_with_the_engines_code(container: Container, sent: signal.Signals) -> None:
    process = container.run(STOPS_WELL, "7")
    process.send_signal(sent)
    assert process.wait(40) == 7
    assert ended(container) == (Phase.EXITED, True, 7)
    assert container.log() == container.stdout == b"up\ndown\n"


def test_an_engine_that_dies_of_the_sigterm_it_was_sent_ended_well(container: Container) -> None:
    process = container.run(IDLE)
    process.terminate()
    assert process.wait(40) == 0
    assert ended(container) == (Phase.EXITED, True, 143)


def test_an_engine_that_does_not_stop_in_time_is_killed(container: Container) -> None:
    process = container.run(IGNORES_TERM, stop=1)
    process.terminate()
    began = time.monotonic()
    assert process.wait(40) == 137
    assert time.monotonic() - began >= 1
    assert ended(container) == (Phase.EXITED, True, 137)


def test_sigquit_does_not_wait(container: Container) -> None:
    process = container.run(IGNORES_TERM, stop=60)
    (container.volume / "hold").write_text(running(container).run + "\n")
    process.terminate()
    container.until(lambda: ended(container)[0] is Phase.STOP_REQUESTED)
    process.send_signal(signal.SIGQUIT)
    assert process.wait(40) == 137
    assert ended(container) == (Phase.EXITED, True, 137)
    container.until(lambda: not container.left_behind())


def test_sighup_changes_nothing(container: Container) -> None:
    process = container.run(STOPS_WELL, "7")
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    assert process.poll() is None
    assert running(container).code is None
    process.terminate()
    assert process.wait(40) == 7


ENDS_ITSELF_BY_A_SIGNAL = """
import os, signal, time
def end(*_):
    os.write(1, b"down\\n")
    os.kill(os.getpid(), signal.SIGABRT)
signal.signal(signal.SIGTERM, end)
os.write(1, b"up\\n")
time.sleep(60)
"""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("program", "code"), [(STOPS_WELL, 7), (ENDS_ITSELF_BY_A_SIGNAL, 134)])
def test_a_storm_of_signals_is_one_stop(container: Container, program: str, code: int, seed: int) -> None:
    random = Random(seed)
    process = container.run(program, "7")
    while process.poll() is None:
        process.send_signal(random.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
        time.sleep(random.uniform(0, 0.004))
    assert process.returncode == code
    assert ended(container) == (Phase.EXITED, True, code)
    assert container.log() == b"up\ndown\n"


@pytest.mark.parametrize("delay_ms", range(0, 60, 4))
def test_sigterm_at_any_moment_of_the_start_ends_it(container: Container, delay_ms: int) -> None:
    container.publish_program(IDLE)
    process = container.start()
    time.sleep(delay_ms / 1000)
    process.terminate()
    # In the first milliseconds there is no trap yet, and the signal ends the shell itself: the stub's trap has ended by
    # then, and number 1 of a container would not even notice. Nothing may be running then either.
    assert process.wait(40) in (0, -signal.SIGTERM)
    container.until(lambda: not container.left_behind())
    if process.returncode == 0:
        assert ended(container) == (Phase.EXITED, True, 143)


def test_a_signal_to_everybody_in_the_group_does_not_skip_the_hold(container: Container) -> None:
    """Ctrl-C in a terminal reaches the script's own helpers too."""
    process = container.run(STOPS_WELL, "0")
    hold = container.volume / "hold"
    hold.write_text(running(container).run + "\n")
    os.killpg(process.pid, signal.SIGINT)
    container.until(lambda: ended(container)[0] is Phase.STOP_REQUESTED)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert container.log() == b"up\n"
    hold.unlink()
    assert process.wait(40) == 0
    assert container.log() == container.stdout == b"up\ndown\n"


def test_the_stub_ends_at_once_while_it_waits_for_the_script(container: Container) -> None:
    stub = subprocess.Popen(
        [*container.shell_command, "-c", engine_stub(str(container.root / "absent"))],
        env=os.environ | {"WINGS_TEST_ROOT": str(container.root)},
        start_new_session=True,
    )
    container.processes.append(stub)
    # It has its trap, and its first `sleep`.
    container.until(lambda: len(container.left_behind()) > 1)
    stub.terminate()
    assert stub.wait(40) == 143


# The hold


def test_the_engine_is_not_touched_while_its_run_is_held(container: Container) -> None:
    process = container.run(STOPS_WELL, "0", release=60)
    hold = container.volume / "hold"
    hold.write_text(running(container).run + "\n")
    process.terminate()
    container.until(lambda: ended(container) == (Phase.STOP_REQUESTED, True, None))
    time.sleep(0.7)
    assert container.log() == b"up\n"
    hold.unlink()
    assert process.wait(40) == 0  # and not after the 60 s
    assert container.log() == b"up\ndown\n"


@pytest.mark.parametrize(
    "content", ["", "\n", "0b1c2d3e-4f50-4a61-8b72-9c83ad94be05\n", "engine\n" * 100, "\0\0\n", "*\n"]
)
def test_a_hold_of_anything_else_holds_nothing(container: Container, content: str) -> None:
    process = container.run(STOPS_WELL, "0", release=60)
    (container.volume / "hold").write_text(content)
    process.terminate()
    assert process.wait(40) == 0
    assert container.stderr == b""


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_the_holds_place_holds_nothing(container: Container, make: object) -> None:
    process = container.run(STOPS_WELL, "0", release=60)
    assert callable(make)
    make(container.volume / "hold")
    process.terminate()
    assert process.wait(40) == 0


def test_a_dead_sidecar_cannot_hold_for_ever(container: Container) -> None:
    process = container.run(STOPS_WELL, "0", release=1)
    (container.volume / "hold").write_text(running(container).run + "\n")
    process.terminate()
    began = time.monotonic()
    assert process.wait(40) == 0
    assert time.monotonic() - began >= 1


def test_an_engine_that_dies_by_itself_while_it_is_held(container: Container) -> None:
    told = container.root / "told"
    process = container.run(DIES_WHEN_TOLD, str(told), "5", release=60)
    (container.volume / "hold").write_text(running(container).run + "\n")
    process.terminate()
    container.until(lambda: ended(container)[0] is Phase.STOP_REQUESTED)
    told.touch()
    assert process.wait(40) == 5
    assert ended(container) == (Phase.EXITED, True, 5)
    container.until(lambda: not container.left_behind())


# What the engine gets


def test_the_engine_leads_its_own_group_and_holds_no_descriptor_of_ours(container: Container) -> None:
    container.publish_program(
        "import os; print(os.getpid() == os.getpgid(0) == os.getsid(0));"
        "print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1]); print(os.getppid())",
    )
    process = container.start()
    process.wait(40)
    assert container.log().decode().split("\n")[:-1] == ["True", "[0, 1, 2]", str(process.pid)]


def test_the_engine_gets_the_signals_and_the_environment_a_container_has(container: Container) -> None:
    container.env = {"run": "theirs", "log": "theirs"}
    container.publish_program(
        "import os, signal; python = (signal.SIGPIPE, signal.SIGXFSZ);"
        "ignored = [s for s in sorted(signal.valid_signals()) if signal.getsignal(s) == signal.SIG_IGN];"
        "print([s.name for s in ignored if s not in python]);"
        "print(sorted(name for name in os.environ if 'wings' in name)); print(os.environ['run'], os.environ['log']);"
        "print(os.environ['PATH'], os.environ['A'], oct(os.umask(0)), os.getcwd())",
        env=(("PATH", "/engine/bin"), ("A", "x  y")),
    )
    container.start().wait(40)
    # busybox has its own env(1), which cannot undo what every shell does to background commands.
    ignored = "['SIGINT', 'SIGQUIT']" if container.shell == "busybox" else "[]"
    assert container.log().decode().splitlines() == [
        ignored,
        "[]",
        "theirs theirs",
        f"/engine/bin x  y 0o22 {Path.cwd()}",
    ]


def test_the_files_are_readable_by_another_user(container: Container) -> None:
    container.prefix = (shutil.which("env") or "env", "-u", "NOTHING", "sh", "-c", 'umask 077; exec "$@"', "sh")
    container.run(IDLE)
    for name in ("engine.alive", "engine.log", "engine.status"):
        assert stat.S_IMODE((container.volume / name).stat().st_mode) == 0o644


# The log


def test_the_log_of_the_run_before_is_kept(container: Container) -> None:
    for word in ("first", "second", "third"):
        container.publish("sh", "-c", f"echo {word}; exit 1")
        container.start().wait(40)
    assert container.log() == b"third\n"
    assert container.log("engine.log.1") == b"second\n"


def test_every_byte_up_to_the_last_reaches_log_and_output(container: Container) -> None:
    program = (
        "import os; [os.write(1, bytes(range(256)) * 16) for _ in range(400)]; os.write(2, b'the end'); os._exit(9)"
    )
    container.publish_program(program)
    assert container.start().wait(60) == 9
    expected = bytes(range(256)) * 16 * 400 + b"the end"
    assert container.stdout == expected
    assert container.log() == expected


def test_an_unfinished_line_is_not_waited_for(container: Container) -> None:
    container.publish_program("import time; print('Loading 1/4\\r', end='up', flush=True); time.sleep(60)")
    container.start()
    container.until(lambda: container.log() == container.stdout == b"Loading 1/4\rup")


def test_an_output_nobody_reads_any_more_does_not_end_the_engine(container: Container) -> None:
    """The container runtime may restart and drop its end of the pipe."""
    told = container.root / "told"
    container.publish_program(
        "import os, sys, time; os.write(1, b'up\\n')\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.002)\n"
        "[os.write(1, b'more\\n') and time.sleep(0.001) for _ in range(50)]; os._exit(4)",
        str(told),
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*container.shell_command, str(container.volume / "start_command.sh")],
        stdout=writer,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"WINGS_TEST_ROOT": str(container.root)},
    )
    container.processes.append(process)
    os.close(writer)
    container.until(lambda: container.log() == b"up\n")
    os.close(reader)
    told.touch()
    assert process.wait(40) == 4
    assert container.log() == b"up\n" + b"more\n" * 50


# Odd places


@pytest.mark.parametrize("name", ["two words", "it's", "$(id)", "模型", "-n", "*"])
def test_the_volume_may_have_any_name(container: Container, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = container.root / name
    place.mkdir()
    container.publish("sh", "-c", "echo up; exit 3")
    shutil.move(container.volume, place / "volume")
    container.root = place
    assert container.start().wait(40) == 3
    assert ended(container) == (Phase.EXITED, False, 3)
    assert container.log() == b"up\n"


@pytest.mark.parametrize("path", ["start_command.sh", "./start_command.sh", "../volume/start_command.sh"])
def test_the_script_may_be_named_relatively(container: Container, path: str) -> None:
    container.publish("sh", "-c", "exit 3")
    assert subprocess.run([*container.shell_command, path], cwd=container.volume, timeout=60).returncode == 3
    assert ended(container) == (Phase.EXITED, False, 3)


def test_the_volume_goes_away_under_a_running_engine(container: Container) -> None:
    process = container.run(STOPS_WELL, "0")
    shutil.rmtree(container.volume)
    process.terminate()
    assert process.wait(40) == 0
    assert container.stdout == b"up\ndown\n"
    assert not container.volume.exists()


@pytest.mark.parametrize("name", ["engine.status", "engine.alive", "engine.log", "engine.log.1", "hold"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "link to nowhere", "link to a file"])
def test_whatever_lies_in_a_files_place_the_engine_runs_and_ends(container: Container, name: str, kind: str) -> None:
    container.publish_program(STOPS_WELL, "3")
    place, other = container.volume / name, container.root / "other"
    other.write_text("precious")
    match kind:
        case "directory":
            place.mkdir()
            (place / "precious").touch()
        case "fifo":
            os.mkfifo(place)
        case "link to nowhere":
            place.symlink_to(container.root / "nowhere")
        case _:
            place.symlink_to(other)
    process = container.start()
    container.until(lambda: b"up" in container.stdout)
    process.terminate()
    assert process.wait(40) == 3
    assert container.stdout == b"up\ndown\n"
    assert other.read_text() == "precious"
    if kind == "directory":
        assert [entry.name for entry in place.iterdir()] == ["precious"]
    elif name != "hold":
        assert ended(container) == (Phase.EXITED, True, 3)
    container.until(lambda: not container.left_behind())


@needs_root
def test_a_read_only_volume(container: Container) -> None:
    container.publish_program(STOPS_WELL, "3")
    mount = f'mount --bind "{container.volume}" "{container.volume}" && mount -o remount,bind,ro "{container.volume}"'
    container.prefix = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    process = container.start()
    container.until(lambda: b"up" in container.stdout)
    process.terminate()
    assert process.wait(40) == 3
    assert container.stdout == b"up\ndown\n"
    assert container.files() == ["start_command.sh"]


# As in a container


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="wings-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# For users who may not read where the tests' Python lies.
SHELL_ENGINE = "trap 'echo down; exit 3' TERM; echo up; while :; do sleep 0.02; done"


@needs_root
def test_as_another_user_than_the_sidecar(container: Container, open_directory: Path) -> None:
    container.root = open_directory
    container.publish("sh", "-c", SHELL_ENGINE)
    container.volume.chmod(0o777)
    container.prefix = ("setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups", "--no-new-privs")
    process = container.start()
    container.until(lambda: b"up" in container.log())
    (container.volume / "hold").write_text(running(container).run + "\n")
    process.terminate()
    container.until(lambda: ended(container)[0] is Phase.STOP_REQUESTED)
    (container.volume / "hold").unlink()
    assert process.wait(40) == 3
    assert ended(container) == (Phase.EXITED, True, 3)
    assert (container.volume / "engine.log").stat().st_uid == 10001
    assert container.stderr == b""


@needs_root
def test_where_the_engines_user_may_not_write(container: Container, open_directory: Path) -> None:
    container.root = open_directory
    container.publish("sh", "-c", SHELL_ENGINE)
    container.volume.chmod(0o755)
    container.prefix = ("setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups")
    process = container.start()
    container.until(lambda: b"up" in container.stdout)
    process.terminate()
    assert process.wait(40) == 3
    assert container.stdout == b"up\ndown\n"
    assert container.files() == ["start_command.sh"]


def test_with_nothing_on_the_path_but_coreutils_and_util_linux(container: Container) -> None:
    tools = container.root / "bin"
    tools.mkdir()
    for name in TOOLS:
        source = shutil.which("busybox" if container.shell == "busybox" else name)
        assert source is not None
        (tools / name).symlink_to(source)
    container.env = {"PATH": str(tools)}
    process = container.run(STOPS_WELL, "7")
    (container.volume / "hold").write_text(running(container).run + "\n")
    process.terminate()
    container.until(lambda: ended(container)[0] is Phase.STOP_REQUESTED)
    (container.volume / "hold").unlink()
    assert process.wait(40) == 7
    assert ended(container) == (Phase.EXITED, True, 7)
    assert container.log() == container.stdout == b"up\ndown\n"
    assert container.stderr == b""


def number_one(unshare: subprocess.Popen[bytes]) -> int:
    """The process id, seen from here, of the namespace's process 1."""
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    Container.until(lambda: children.read_text())
    return int(children.read_text().split()[0])


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@needs_root
def test_as_process_number_one(container: Container) -> None:
    container.prefix = NAMESPACE
    process = container.run(STOPS_WELL, "7")
    os.kill(number_one(process), signal.SIGTERM)
    assert process.wait(40) == 7
    assert ended(container) == (Phase.EXITED, True, 7)
    assert container.log() == b"up\ndown\n"


@needs_root
def test_as_process_number_one_it_buries_the_orphans_of_others(container: Container) -> None:
    container.prefix = NAMESPACE
    told = container.root / "told"
    program = """
import os, sys, time
for _ in range(5):
    if not os.fork():
        os.setsid()
        if not os.fork(): time.sleep(0.05)
        os._exit(0)
    os.wait()
print("up", flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.002)
states = [open(f"/proc/{pid}/stat").read().rsplit(")")[1].split()[0] for pid in os.listdir("/proc") if pid.isdigit()]
print(states.count("Z"))
"""
    process = container.run(program, str(told))
    time.sleep(0.3)
    told.touch()
    assert process.wait(40) == 1
    assert container.log() == b"up\n0\n"


@needs_root
def test_the_stub_as_number_one_waits_for_the_script_and_becomes_it(container: Container) -> None:
    script = container.volume / "start_command.sh"
    with (container.root / "stdout").open("wb") as out:
        process = subprocess.Popen(
            [*NAMESPACE, *container.shell_command, "-c", engine_stub(str(script))],
            stdout=out,
            env=os.environ | {"WINGS_TEST_ROOT": str(container.root)},
        )
    container.processes.append(process)
    pid = number_one(process)
    container.publish_program(STOPS_WELL, "7")
    container.until(lambda: b"up" in container.log())
    assert number_one(process) == pid
    os.kill(pid, signal.SIGTERM)
    assert process.wait(40) == 7


@needs_root
def test_the_stub_as_number_one_ends_while_it_waits(container: Container) -> None:
    command = [*NAMESPACE, *container.shell_command, "-c", engine_stub(str(container.root / "absent"))]
    process = subprocess.Popen(command)
    container.processes.append(process)
    pid = number_one(process)
    # Without its trap, number 1 does not even notice.
    container.until(lambda: catches(pid, signal.SIGTERM))
    os.kill(pid, signal.SIGTERM)
    assert process.wait(40) == 143


@needs_root
def test_when_number_one_is_killed_its_fifo_ends_and_nothing_is_left(container: Container) -> None:
    container.prefix = NAMESPACE
    process = container.run(IDLE)
    fifo = os.open(container.volume / "engine.alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            os.read(fifo, 100)
        with pytest.raises(BlockingIOError):
            os.read(fifo, 100)
        os.kill(number_one(process), signal.SIGKILL)
        process.wait(40)
        assert os.read(fifo, 100) == b""
    finally:
        os.close(fifo)
    assert running(container).code is None
    container.until(lambda: not container.left_behind())


# A small volume

# A private tmpfs of 64 KiB, whose files are copied out when the script has ended.
SMALL_VOLUME = """
script=$(cat "$1/start_command.sh"; echo .)
mount -t tmpfs -o size=64k tmpfs "$1" || exit 99
printf '%s' "${script%.}" >"$1/start_command.sh"
volume=$1; shift
"$@"
code=$?
rm -f "$volume/filler"
cp -a "$volume" "$volume.after"
exit $code
"""


@pytest.fixture
def small(container: Container) -> Container:
    container.prefix = ("unshare", "-m", "sh", "-c", SMALL_VOLUME, "sh", str(container.volume))
    return container


def after(small: Container) -> Container:
    shutil.rmtree(small.volume)
    (small.root / "volume.after").rename(small.volume)
    return small


@needs_root
def test_a_flood_of_output_stays_within_its_share(small: Container) -> None:
    program = """
import os, sys, time
largest = 0
for number in range(20000):
    os.write(1, b"line %06d\\n" % number)
    largest = max(largest, os.stat(sys.argv[1]).st_size)
last = b"largest %d\\n" % largest
os.write(2, last)
while not open(sys.argv[1], "rb").read().endswith(last): time.sleep(0.002)
os._exit(3)
"""
    small.publish_program(program, str(small.volume / "engine.log"))
    assert small.start().wait(60) == 3
    lines = small.stdout.decode().splitlines()
    assert lines[:-1] == [f"line {number:06}" for number in range(20000)]
    assert 4096 < int(lines[-1].split()[1]) <= 8192
    assert ended(after(small)) == (Phase.EXITED, False, 3)
    assert small.log().endswith(lines[-1].encode() + b"\n")


FILL = """
import os, sys, time
path = sys.argv[1]
def fill():
    with open(path + "/filler", "wb", buffering=0) as filler:
        try:
            while True: filler.write(bytes(512))
        except OSError as error:
            assert error.errno == 28
"""


@needs_root
def test_a_full_volume_still_tells_how_the_run_ended(small: Container) -> None:
    program = FILL + "print('before', flush=True); time.sleep(0.1); fill(); print('full', flush=True); os._exit(3)"
    small.publish_program(program, str(small.volume))
    assert small.start().wait(40) == 3
    assert small.stdout == b"before\nfull\n"
    assert ended(after(small)) == (Phase.EXITED, False, 3)


@needs_root
def test_a_full_volume_from_the_start(small: Container) -> None:
    small.publish("sh", "-c", "echo up; exit 3")
    small.prefix = (*small.prefix, "sh", "-c", 'cat /dev/zero >"$0/filler" 2>/dev/null; exec "$@"', str(small.volume))
    assert small.start().wait(40) == 3
    assert small.stdout == b"up\n"


@needs_root
def test_the_log_goes_on_when_there_is_room_again(small: Container) -> None:
    if small.shell != "dash":
        pytest.skip("takes nine seconds: one shell is enough")
    program = FILL + (
        "print('before', flush=True)\n"
        "while open(path + '/engine.log').read() != 'before\\n': time.sleep(0.002)\n"
        "fill(); print('lost' * 2000, flush=True); time.sleep(1)\n"
        "os.unlink(path + '/filler'); time.sleep(8); print('after', flush=True); os._exit(3)"
    )
    small.publish_program(program, str(small.volume))
    assert small.start().wait(60) == 3
    assert small.stdout == b"before\n" + b"lost" * 2000 + b"\nafter\n"
    log = after(small).log()
    assert log.startswith(b"before\n")
    assert len(log) <= 4096 + len("after\n")
    assert log.endswith(b"after\n")


def test_a_fifo_somebody_filled_up_delays_the_end_but_does_not_prevent_it(container: Container) -> None:
    process = container.run(STOPS_WELL, "7")
    fifo = os.open(container.volume / "engine.alive", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fifo, bytes(4096))
    os.close(fifo)
    process.terminate()
    assert process.wait(40) == 7
    assert ended(container) == (Phase.EXITED, True, 7)
