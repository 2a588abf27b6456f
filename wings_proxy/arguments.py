"""What can be said on the command line, and the help pages: 80 columns, the exit codes, examples."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Never

from wings_proxy import __version__
from wings_proxy.config.kinds import shown
from wings_proxy.config.settings import SETTINGS
from wings_proxy.exit_codes import ExitCode

SERVE: Final = "serve"
RENDER: Final = "render"
CHECK: Final = "check"
UP: Final = "up"

_COLUMNS: Final = 80
_PREFIX: Final = "WINGS_"
_ALIKE: Final = 0.7


class ArgumentsError(Exception):
    """The arguments make no sense; the text is one line that says which, and where the help is."""


class PageAsked(Exception):  # noqa: N818 - it is none
    """Help or the version was asked for; the text is the page."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options: `command`, for `render` also `argv` and `out`, for `up` also `ask` and `once`.

    Raises `ArgumentsError` and `PageAsked`.
    """
    parser, commands = _parsers()
    word = next((argument for argument in arguments if not argument.startswith("-")), SERVE)
    if word not in commands:
        parser.error(f"no such command: {shown(word)}{_meant(word, commands)}; there are {', '.join(commands)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.get(options.command or "", parser).refuse(unknown)
    options.command = options.command or SERVE
    return options


class _Parser(argparse.ArgumentParser):
    """A parser that raises what others print; its pages are as wide on every terminal, so they can be compared."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **more)

    def error(self, message: str) -> Never:
        raise ArgumentsError(f"{self.prog}: {message} (see {self.prog} --help)")

    def print_help(self, file: object = None) -> Never:
        del file
        raise PageAsked(self.format_help())

    def refuse(self, unknown: Sequence[str]) -> Never:
        """Say which arguments nobody knows, and what was perhaps meant by the first."""
        flag = unknown[0].partition("=")[0]
        hint = _meant(flag, self._option_string_actions)
        if not hint and flag.startswith("--") and (setting := _setting_for(flag)):
            hint = f"; settings come from the environment: set {setting}"
        self.error(f"unknown argument: {shown(' '.join(unknown))}{hint}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_COLUMNS, max_help_position=20)


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> Never:
        raise PageAsked(f"wings-proxy {__version__}\n")


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=_ALIKE)
    return f"; did you mean {near[0]}?" if near else ""


def _setting_for(flag: str) -> str | None:
    name = flag.removeprefix("--").replace("-", "_").upper()
    known = {setting.env.removeprefix(_PREFIX): setting.env for setting in SETTINGS if setting.env}
    near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
    return known[near[0]] if near else None


# -- the pages -------------------------------------------------------------------------------------------------------

_DESCRIPTION: Final = "The sidecar that makes an LLM engine a good citizen of Kubernetes."
_SUMMARIES: Final = {
    SERVE: "run the sidecar (the default)",
    RENDER: "print the engine's launch script",
    CHECK: "check the configuration and show every setting with its source",
    UP: "run sidecar and engine on this machine",
}
_DESCRIPTIONS: Final = {
    SERVE: "Run the sidecar: write the launch script to SHARED_VOLUME_PATH, watch the engine, forward requests from "
    "WINGS_PORT to ENGINE_PORT. Ends when the requests in flight are done after SIGTERM or Ctrl-C, at once after a "
    "second one. Its log lines go to standard error.",
    RENDER: "Print the script the engine container runs, as serve would write it. Nothing is started.",
    CHECK: "Check every setting and the key files, without starting anything, and print one line for each setting: "
    "name, value, where it comes from. What is wrong goes to standard error, one line for each mistake.",
    UP: "Run sidecar and engine on this machine, the same way as in a pod, until Ctrl-C. Without MODEL_PATH a small "
    "model is fetched once (93 MB) and run by llama.cpp; a *.gguf file is run by llama.cpp too, anything else by "
    "ENGINE_TYPE (vllm). Answers go to standard output, everything else to standard error: on a terminal with a line "
    "that is redrawn, in colour unless NO_COLOR is set; plain lines elsewhere.",
}
_EXAMPLES: Final = {
    None: ("MODEL_PATH=/models/Qwen2.5-0.5B-Instruct wings-proxy check", "wings-proxy up --ask 'Who are you?'"),
    SERVE: ("MODEL_PATH=/models/Qwen2.5-0.5B-Instruct SHARED_VOLUME_PATH=/tmp wings-proxy",),
    RENDER: (
        "MODEL_PATH=/models/Qwen2.5-0.5B-Instruct wings-proxy render --argv",
        "WINGS_CONFIG=wings.yaml wings-proxy render --out start_command.sh",
    ),
    CHECK: ("WINGS_CONFIG=wings.yaml wings-proxy check", "wings-proxy check | grep -v default"),
    UP: (
        "wings-proxy up",
        "wings-proxy up --once --ask 'Who are you?' 2>/dev/null",
        "ENGINE_TYPE=vllm MODEL_PATH=/models/Qwen2.5-0.5B-Instruct wings-proxy up",
    ),
}
_CODES: Final = {
    SERVE: (*tuple(ExitCode)[:3], ExitCode.TERMINATED),
    RENDER: tuple(ExitCode),
    CHECK: tuple(ExitCode),
    UP: tuple(ExitCode)[:4],
}


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="wings-proxy", description=_DESCRIPTION, epilog="\n".join(_main_epilog()))
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    made = parser.add_subparsers(dest="command", metavar="command", title="commands")
    commands = {
        word: made.add_parser(
            word,
            help=summary,
            description=textwrap.fill(_DESCRIPTIONS[word], _COLUMNS),
            epilog="\n".join([*_examples(word), "", *_exit_codes(_CODES[word])]),
        )
        for word, summary in _SUMMARIES.items()
    }
    render = commands[RENDER].add_argument
    render("--argv", action="store_true", help="print the engine's command as a JSON list instead")
    render("--out", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    up = commands[UP].add_argument
    up("--ask", metavar="TEXT", action="append", default=[], help="when ready, ask TEXT and stream the answer")
    up("--once", action="store_true", help="stop after the answers instead of staying up")
    return parser, commands


def _main_epilog() -> Iterator[str]:
    yield from _examples(None)
    yield ""
    yield from _exit_codes(tuple(ExitCode))
    yield ""
    yield from textwrap.wrap(
        "settings, from the environment, over the YAML file that WINGS_CONFIG names, over defaults; "
        "`wings-proxy check` shows every one with its value and source:",
        _COLUMNS,
    )
    for setting in SETTINGS:
        if setting.env:
            yield from _entry(setting.env, setting.meaning, 34)


def _examples(command: str | None) -> Iterator[str]:
    yield "examples:"
    yield from (f"  {line}" for line in _EXAMPLES[command])


def _exit_codes(codes: Sequence[ExitCode]) -> Iterator[str]:
    yield "exit codes:"
    for code in codes:
        yield from _entry(str(code.value), code.meaning, 6)


def _entry(name: str, meaning: str, column: int) -> Iterator[str]:
    """Yield the lines of a name and its meaning beside it."""
    indent = " " * (column + 1)
    yield from textwrap.wrap(
        meaning,
        _COLUMNS,
        initial_indent=f"  {name:<{column - 2}} ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
