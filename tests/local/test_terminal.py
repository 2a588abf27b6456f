"""What reaches a terminal, and what reaches anything else."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from wings_proxy.local.terminal import Terminal

LIVE = {"TERM": "xterm"}


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(screen: Screen) -> str:
    return screen.getvalue().replace("\r\x1b[2K", "<")


@pytest.mark.parametrize("environ", [{}, {"TERM": ""}, {"TERM": "dumb"}])
def test_a_terminal_that_cannot_redraw_gets_lines(environ: dict[str, str]) -> None:
    screen = Screen()
    terminal = Terminal(screen, environ)
    assert not terminal.is_live
    terminal.show("loading")
    terminal.say("ready")
    assert screen.getvalue() == "wings-proxy: ready\n"


def test_a_file_gets_lines() -> None:
    file = io.StringIO()
    terminal = Terminal(file, LIVE)
    terminal.show("loading")
    terminal.say("ready")
    assert file.getvalue() == "wings-proxy: ready\n"
    assert (terminal.is_live, terminal.has_colour, terminal.width) == (False, False, 79)


def test_the_line_below_is_redrawn_in_place_and_stays_below() -> None:
    screen = Screen()
    terminal = Terminal(screen, LIVE)
    terminal.show("10 %")
    terminal.show("10 %")
    terminal.show("20 %")
    terminal.say("news")
    terminal.show("")
    terminal.say("more")
    assert drawn(screen) == "10 %<20 %<wings-proxy: news\n20 %<wings-proxy: more\n"


def test_it_makes_room_for_answers() -> None:
    screen = Screen()
    terminal = Terminal(screen, LIVE)
    terminal.show("ready")
    with terminal.hidden():
        terminal.show("ready, 1 in flight")
        terminal.say("asking")
        screen.write("an answer\n")
    assert drawn(screen) == "ready<wings-proxy: asking\nan answer\nready, 1 in flight"


def test_colour_is_a_matter_of_taste() -> None:
    assert Terminal(Screen(), LIVE).has_colour
    assert not Terminal(Screen(), {**LIVE, "NO_COLOR": "1"}).has_colour
    assert Terminal(Screen(), {**LIVE, "NO_COLOR": ""}).has_colour


@contextmanager
def real_terminal() -> Iterator[TextIO]:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        yield stream
    os.close(controller)


@pytest.mark.parametrize(("columns", "width"), [(120, 119), (0, 79)])
def test_the_width_is_the_terminals_if_it_knows(columns: int, width: int) -> None:
    with real_terminal() as stream:
        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        terminal = Terminal(stream, LIVE)
        assert terminal.is_live
        assert terminal.width == width


def test_a_terminal_that_is_gone_stops_nobody() -> None:
    class Gone(Screen):
        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    terminal = Terminal(Gone(), LIVE)
    terminal.show("loading")
    terminal.say("ready")
