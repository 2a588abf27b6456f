"""`wings-proxy up` on a real terminal: what a person sees while it starts, serves and ends."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.llama_pod import real_model
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
# What is drawn may be cut anywhere between two reads: an escape sequence is taken when it is whole.
_PIECE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\x1b\[?\??[0-9;]*$|.", re.DOTALL)
_LINES = 200


class Screen:
    """What a terminal of so many columns shows: rows, and how the last column is left. No more than `up` may use."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self.seen: list[str] = []
        self.wrapped: list[str] = []
        self.styles: set[str] = set()
        self.modes: list[str] = []
        self._column = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        for piece in _PIECE.finditer(text):
            if piece[2]:
                self._control(piece[1], piece[2])
            elif piece[0][0] == "\x1b":
                self._rest = piece[0]
            elif piece[0] == "\r":
                self._column = 0
            elif piece[0] == "\n":
                self.seen.append(self.rows[-1])
                self.rows.append("")
            else:
                self._put(piece[0])
        self.seen.append(self.rows[-1])

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self.wrapped.append(self.rows[-1])
            self.rows.append("")
            self._column = 0
        row = self.rows[-1].ljust(self._column)
        self.rows[-1] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1

    def _control(self, values: str, final: str) -> None:
        match final:
            case "K":
                assert values == "2"
                self.seen.append(self.rows[-1])
                self.rows[-1] = ""
            case "m":
                self.styles.add(values)
            case _:
                self.modes.append(values + final)

    @property
    def live(self) -> list[str]:
        """The states the redrawn line has shown, each once."""
        states = r"(?:waiting|starting|loading|ready|unhealthy|stopping|failed)\b(?!:)"
        return list(dict.fromkeys(row for row in self.seen if re.match(states, row)))


class OnTerminal:
    """A running `up` whose terminal we hold the other end of."""

    patience_seconds = 40.0

    def __init__(self, directory: Path, columns: int, arguments: Sequence[str] = (), **environ: str) -> None:
        self.screen = Screen(columns)
        command = [sys.executable, "-m", "wings_proxy", "up", *arguments]
        environ = {
            "HOME": str(directory),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "WINGS_PORT": str(free_port()),
            "ENGINE_PORT": str(free_port()),
            **environ,
        }
        self.url = f"http://127.0.0.1:{environ['WINGS_PORT']}"
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # Before anything is drawn; Python's terminal of a child has no size.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
            os.execve(command[0], command, environ)
        self._settings = termios.tcgetattr(self._terminal)
        # A character may come in two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.status: int | None = None

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not happened():
            assert time.monotonic() < deadline, (self.screen.rows, self.screen.live)
            self._read(0.05)

    def sees(self, pattern: str) -> None:
        self.until(lambda: any(re.search(pattern, row) for row in (*self.screen.rows, *self.screen.live)))

    def types(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def ended(self) -> int:
        """Return the exit code, after everything was read."""

        def is_over() -> bool:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.status = status if pid else None
            return self.status is not None

        self.until(is_over)
        while self._read(0.05):
            pass
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def is_as_it_was(self) -> None:
        """Nothing that outlives the program: modes of the terminal, a hidden cursor, a style, a line half drawn."""
        assert termios.tcgetattr(self._terminal) == self._settings
        assert self.screen.modes == []
        assert self.screen.rows[-1] == ""

    def _read(self, seconds: float) -> bool:
        readable, _, _ = select.select([self._terminal], [], [], seconds)
        if not readable:
            return False
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # how Linux says that nobody has the other end any more
            return False
        self.screen.feed(self._decoder.decode(data))
        return bool(data)

    def close(self) -> None:
        if self.status is None:
            self.types(b"\x03\x03")
            with contextlib.suppress(AssertionError):
                self.ended()
        os.close(self._terminal)


Start = Callable[..., OnTerminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[OnTerminal] = []

    def start(columns: int, *arguments: str, **environ: str) -> OnTerminal:
        runs.append(OnTerminal(tmp_path, columns, arguments, **environ))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def a_slow_vllm(directory: Path) -> dict[str, str]:
    """Return the environment of a vLLM (the fake one) that takes three seconds to load sixty shards."""
    program = directory / "bin" / "python3"
    program.parent.mkdir()
    # `up` asks it with -c whether it has the module.
    program.write_text(
        f'#!/bin/sh\n[ "$1" != -c ] || exit 0\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.fake "$@"\n'
    )
    program.chmod(0o755)
    return {
        "ENGINE_TYPE": "vllm",
        "MODEL_PATH": "some/model",
        "PATH": f"{directory}/bin:{os.environ['PATH']}",
        "FAKE_ENGINE": json.dumps({"boot_seconds": 3, "shards": 60}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("columns", [100, 40])
def test_a_bar_while_it_loads_the_address_when_it_is_ready_and_a_clean_end(
    start: Start, tmp_path: Path, columns: int
) -> None:
    run = start(columns, **a_slow_vllm(tmp_path))
    run.sees(r"^loading  weights  \[#+-+\] \d+%")
    run.sees(rf"^ready  {re.escape(run.url)}")
    run.sees("stop:  Ctrl-C")
    # Beside the state, and nowhere else.
    assert {"34", "32", "0"} <= run.screen.styles

    run.types(b"\x03")

    assert run.ended() == 0
    assert [row for row in run.screen.rows if row][-1] == "wings-proxy: stopped"
    run.is_as_it_was()
    # The line that is redrawn never takes the last column: it could not be taken back from two rows.
    assert max(map(len, run.screen.live)) < columns
    assert not [row for row in run.screen.wrapped if row in run.screen.live]


@pytest.mark.slow
def test_no_colour_where_nobody_wants_any(start: Start, tmp_path: Path) -> None:
    run = start(80, NO_COLOR="1", **a_slow_vllm(tmp_path))
    run.sees("stop:  Ctrl-C")
    run.types(b"\x03")
    assert run.ended() == 0
    assert [row for row in run.screen.live if row.startswith("ready  http")]
    assert run.screen.styles == set()
    run.is_as_it_was()


@pytest.mark.slow
def test_a_terminal_that_cannot_redraw_gets_lines(start: Start, tmp_path: Path) -> None:
    run = start(80, TERM="dumb", **a_slow_vllm(tmp_path))
    run.sees("stop:  Ctrl-C")
    run.types(b"\x03")
    assert run.ended() == 0
    assert [row for row in run.screen.rows if re.match(r"wings-proxy: engine loading: weights \d+ %$", row)]
    assert (run.screen.live, run.screen.styles) == ([], set())


@pytest.mark.slow
def test_ctrl_c_while_it_loads_ends_it_too(start: Start, tmp_path: Path) -> None:
    run = start(80, **(a_slow_vllm(tmp_path) | {"FAKE_ENGINE": json.dumps({"boot_seconds": 600})}))
    run.sees("^loading  ")
    run.types(b"\x03")
    assert run.ended() == 0
    run.is_as_it_was()


@pytest.mark.engine
def test_a_real_model_on_a_narrow_terminal(start: Start) -> None:
    run = start(40, "--once", "--ask", "Say hello.", MODEL_PATH=str(asyncio.run(real_model())))
    run.sees("^loading  ")
    assert run.ended() == 0
    rows = run.screen.rows
    asked = rows.index("wings-proxy: asking: Say hello.")
    assert rows[asked + 1].strip(), rows
    assert [row for row in rows if row.startswith("wings-proxy: first token after ")]
    assert max(map(len, run.screen.live)) < 40
    run.is_as_it_was()
