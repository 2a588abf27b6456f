"""What can be said on the command line, and what is answered to what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from wings_proxy import __version__
from wings_proxy.arguments import ArgumentsError, PageAsked, parse_arguments
from wings_proxy.config.settings import SETTINGS
from wings_proxy.exit_codes import ExitCode

COMMANDS = ("serve", "render", "check", "up")


def page(*arguments: str) -> str:
    with pytest.raises(PageAsked) as asked:
        parse_arguments(arguments)
    return str(asked.value)


def refusal(*arguments: str) -> str:
    with pytest.raises(ArgumentsError) as caught:
        parse_arguments(arguments)
    return str(caught.value)


def test_what_each_command_takes() -> None:
    assert parse_arguments([]).command == "serve"
    assert parse_arguments(["check"]).command == "check"
    rendered = parse_arguments(["render", "--argv", "--out", "x"])
    assert (rendered.command, rendered.argv, rendered.out) == ("render", True, Path("x"))
    run = parse_arguments(["up", "--ask", "a", "--ask", "b", "--once"])
    assert (run.command, run.ask, run.once) == ("up", ["a", "b"], True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("serv", "no such command: serv; did you mean serve?; there are serve, render, check, up"),
        ("frobnicate", "no such command: frobnicate; there are serve, render, check, up"),
        ("--once", "unknown argument: --once"),
        ("up --onse", "unknown argument: --onse; did you mean --once?"),
        ("up --on", "unknown argument: --on; did you mean --once?"),
        ("serve --port 9000", "unknown argument: --port 9000; settings come from the environment: set WINGS_PORT"),
        (
            "check --model-path=/m",
            "unknown argument: --model-path=/m; settings come from the environment: set MODEL_PATH",
        ),
        ("serve -x", "unknown argument: -x"),
        ("serve --xyzzy", "unknown argument: --xyzzy"),
        ("up --ask", "argument --ask: expected one argument"),
        ("up --once=yes", "argument --once: ignored explicit argument 'yes'"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_what_was_perhaps_meant(arguments: str, line: str) -> None:
    command = arguments.split(maxsplit=1)[0]
    prog = f"wings-proxy {command}" if command in COMMANDS else "wings-proxy"
    assert refusal(*arguments.split()) == f"{prog}: {line} (see {prog} --help)"


def test_a_control_character_is_shown_escaped() -> None:
    assert "no such command: a\\x1b[2J;" in refusal("a\x1b[2J")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_page_fits_80_columns_and_names_exit_codes_and_examples(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As wide on every terminal.
    monkeypatch.setenv("COLUMNS", "20")
    text = page(*filter(None, [command]), "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert f"usage: wings-proxy {command}".rstrip() in text
    assert "\nexamples:\n  " in text
    assert "\nexit codes:\n  0    done" in text
    assert "\n  2    wrong configuration" in text


def test_the_first_page_names_everything() -> None:
    words = page("--help").split()
    assert set(COMMANDS) <= set(words)
    assert {setting.env for setting in SETTINGS if setting.env} | {"WINGS_CONFIG"} <= set(words)
    assert {str(code.value) for code in ExitCode} <= set(words)


def test_the_options_of_a_command_are_on_its_page() -> None:
    assert {"--ask", "--once"} <= set(page("up", "-h").split())
    assert {"--argv", "--out"} <= set(page("render", "-h").split())


def test_version() -> None:
    assert page("--version") == f"wings-proxy {__version__}\n"
