"""The launch script as text: what is in it, and that every value arrives as one argument."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wings_proxy
from tests.engine_container import SHELLS, Container, shell_command
from tests.examples import examples
from wings_proxy.handover.engine_status import Phase
from wings_proxy.handover.launch import LaunchSpec, engine_stub, render

NASTY = [
    "",
    " ",
    "two words",
    "'",
    '"',
    'it\'s "quoted"',
    "''\\''",
    "$(touch pwned)",
    "`touch pwned`",
    "${HOME}",
    "; touch pwned",
    "| touch pwned",
    "&& touch pwned &",
    "> pwned",
    "*",
    "~",
    "~root",
    "!!",
    "#no comment",
    "\\",
    "\\n",
    "a\\",
    "\t",
    "-n",
    "--",
    "--model=/m x",
    "=",
    "A=b",
    "{a,b}",
    "[a-z]",
    "模型",
    "é\u0301\U0001f600",
    "\u2028",
    "\x01\x7f\x81",
    "\x1b[31m",
    "\udcff\udc80",
    '{"rope_scaling": {"type": "yarn"}}',
    "x" * 5000,
]


def spec(*argv: str, env: tuple[tuple[str, str], ...] = ()) -> LaunchSpec:
    return LaunchSpec(argv, env, release_seconds=70, stop_seconds=30)


def head(text: bytes) -> str:
    return text[: text.index(b"# shellcheck shell=sh")].decode()


def test_the_head_says_what_runs_and_how_long_its_end_may_take() -> None:
    script = render(spec("llama-server", "-m", "/models/it's.gguf", env=(("OMP_NUM_THREADS", "2"), ("EMPTY", ""))))
    assert head(script.text) == (
        "#!/bin/sh\n"
        f"# generation: {script.generation}\n"
        "# Written by wings-proxy; changes made here are lost.\n"
        f"wings_generation='{script.generation}'\n"
        "wings_release_seconds=70\n"
        "wings_stop_seconds=30\n"
        "set -- \\\n"
        "  'llama-server' \\\n"
        "  '-m' \\\n"
        "  '/models/it'\"'\"'s.gguf'\n"
        "set -- env -- \\\n"
        "  'OMP_NUM_THREADS=2' \\\n"
        "  'EMPTY=' \\\n"
        '  "$@"\n'
        "\n"
    )


def test_the_body_is_the_packaged_file() -> None:
    packaged = (Path(wings_proxy.__file__).with_name("handover") / "launch.sh").read_bytes()
    assert render(spec("engine")).text.endswith(packaged)


def test_the_same_spec_gives_the_same_bytes() -> None:
    assert render(spec("engine", "a")) == render(spec("engine", "a"))


def test_the_generation_is_the_hash_of_all_the_rest() -> None:
    script = render(spec("engine"))
    without = script.text.replace(script.generation.encode(), b"")
    assert script.generation == hashlib.sha256(without).hexdigest()[:12]


@pytest.mark.parametrize(
    "other",
    [
        spec("engine", "b"),
        spec("engine a"),
        spec("engine", "a", env=(("A", "1"),)),
        LaunchSpec(("engine", "a"), (), release_seconds=71, stop_seconds=30),
        LaunchSpec(("engine", "a"), (), release_seconds=70, stop_seconds=31),
    ],
)
def test_whatever_changes_the_run_changes_the_generation(other: LaunchSpec) -> None:
    assert render(other).generation != render(spec("engine", "a")).generation


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (spec(), "argv: the engine's command is empty"),
        (spec(""), "argv: the engine's command is empty"),
        (spec("A=b"), "argv[0]: 'A=b' has a '='"),
        (spec("engine", "a\0b"), "argv[1]: 'a\\x00b' contains NUL"),
        (spec("engine", "a", "b\r"), "argv[2]: 'b\\r' contains a carriage return"),
        (spec("engine\n"), "argv[0]: 'engine\\n' contains a line feed"),
        (spec("engine", "\ud800"), "argv[1]: '\\ud800' contains a lone surrogate"),
        (spec("engine", env=(("A", "1\n2"),)), "env A: '1\\n2' contains a line feed"),
        (spec("engine", env=(("1A", ""),)), "env: '1A' is not a variable's name"),
        (spec("engine", env=(("A-B", ""),)), "env: 'A-B' is not a variable's name"),
        (spec("engine", env=(("", ""),)), "env: '' is not a variable's name"),
        (spec("engine", env=(("A\n", ""),)), "env: 'A\\n' is not a variable's name"),
        (spec("engine", env=(("Ä", ""),)), "env: 'Ä' is not a variable's name"),
        (spec("engine", env=(("A", "1"), ("A", "2"))), "env: A is set twice"),
        (LaunchSpec(("engine",), (), release_seconds=-1, stop_seconds=0), "release_seconds: -1 is negative"),
        (LaunchSpec(("engine",), (), release_seconds=0, stop_seconds=-5), "stop_seconds: -5 is negative"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_by_name(bad: LaunchSpec, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render(bad)


def arguments_seen(shell: str, script: bytes, directory: Path) -> list[str]:
    """Run the script's head alone, with its command's arguments and variables printed instead of run."""
    printed = script[: script.index(b"# shellcheck shell=sh")] + b"\nprintf '%s\\0' \"$@\"\n"
    (directory / "head").write_bytes(printed)
    done = subprocess.run([*shell_command(shell), "head"], cwd=directory, capture_output=True, timeout=100, check=True)
    assert done.stderr == b""
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_nasty_value_is_one_argument_and_runs_nothing(shell: str, tmp_path: Path) -> None:
    words = ["engine", *NASTY]
    seen = arguments_seen(shell, render(spec(*words)).text, tmp_path)
    assert seen == words
    assert [entry.name for entry in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_nasty_value_reaches_the_environment_whole(shell: str, tmp_path: Path) -> None:
    env = tuple((f"V{position}", value) for position, value in enumerate(NASTY))
    seen = arguments_seen(shell, render(spec("engine", "a", env=env)).text, tmp_path)
    assert seen == ["env", "--", *(f"{name}={value}" for name, value in env), "engine", "a"]


words_a_config_can_hold = st.text(
    st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]) | st.sampled_from("'\"\\$`* \t-=!~&|;<>(){}"),
    max_size=30,
)


@given(words=st.lists(words_a_config_can_hold, max_size=200))
@settings(max_examples=examples(15), deadline=None)
def test_any_value_is_one_argument(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("head")
    for shell in SHELLS:
        seen = arguments_seen(shell, render(spec("engine", *words)).text, directory)
        assert seen == ["engine", *words]


def test_the_script_is_clean_to_shellcheck(tmp_path: Path) -> None:
    path = tmp_path / "start_command.sh"
    path.write_bytes(render(spec("engine", "--model", "/models/it's here", env=(("A", "b c"),))).text)
    checker = Path(sys.executable).with_name("shellcheck")
    for target in (path, Path(wings_proxy.__file__).with_name("handover") / "launch.sh"):
        done = subprocess.run([checker, target], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_stub_becomes_the_script_wherever_it_lies(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "a volume's $(name)" / "start_command.sh"
    script.parent.mkdir()
    script.write_text('echo "$0"\n')
    done = subprocess.run(
        [*shell_command(shell), "-c", engine_stub(str(script))], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{script}\n", "")


def test_the_stub_is_one_line_to_be_pasted_into_a_manifest() -> None:
    assert engine_stub("/shared-volume/start_command.sh") == (
        "trap 'exit 143' TERM; until [ -f /shared-volume/start_command.sh ]; do sleep 1 & wait $!; done; "
        "exec sh /shared-volume/start_command.sh"
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_a_run_from_its_start_to_a_crash(shell: str, tmp_path: Path) -> None:
    container = Container(shell, tmp_path)
    generation = container.publish("sh", "-c", 'echo "$0"; echo trouble >&2; exit 3', "it's $(up)")
    try:
        assert container.start().wait(10) == 3
    finally:
        container.clear()
    status = container.status()
    assert status is not None
    assert (status.phase, status.asked, status.code, status.generation) == (Phase.EXITED, False, 3, generation)
    assert abs(status.started - time.time()) < 60
    assert container.log() == container.stdout == b"it's $(up)\ntrouble\n"
    assert container.stderr == b""
    assert container.files() == ["engine.alive", "engine.log", "engine.status", "start_command.sh"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_stop_waits_for_the_hold_to_go(shell: str, tmp_path: Path) -> None:
    container = Container(shell, tmp_path)
    container.publish("sh", "-c", "trap 'echo down; exit 4' TERM; echo up; while :; do sleep 0.02; done")
    try:
        process = container.start()
        container.until(lambda: container.log() == b"up\n")
        status = container.status()
        assert status is not None
        (container.volume / "hold").write_text(f"{status.run}\n")
        process.terminate()
        container.until(lambda: b"stop_requested" in (container.volume / "engine.status").read_bytes())
        assert container.log() == b"up\n"
        (container.volume / "hold").unlink()
        assert process.wait(10) == 4
    finally:
        container.clear()
    status = container.status()
    assert status is not None
    assert (status.phase, status.asked, status.code) == (Phase.EXITED, True, 4)
    assert container.log() == container.stdout == b"up\ndown\n"
