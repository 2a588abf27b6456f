"""Our log lines: one a line whatever is in them, for machines and for people."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from wings_proxy.telemetry.log import set_up_logging

LOGGERS = ("wings_proxy", "aiohttp", "asyncio")
log = logging.getLogger("wings_proxy.test")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for handler in logging.getLogger("wings_proxy").handlers:
        handler.close()
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_a_json_line_says_when_how_bad_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="info")
    log.info("%s -> %s", "loading", "ready", extra={"fields": {"after_seconds": 1.5, "run": None}})
    (line,) = json_lines(capsys)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "wings_proxy.test",
        "message": "loading -> ready",
        "after_seconds": 1.5,
        "run": None,
    }


HOSTILE = "a\nb\r\x1b[31mc\x9b1m\u2028\u202e\x7f\udc80 中文"


@pytest.mark.parametrize("form", ["json", "plain"])
def test_nothing_untrusted_makes_a_line_or_a_colour(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form=form, level="info")
    log.warning("%s", HOSTILE, extra={"fields": {"model": HOSTILE}})
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 1
    assert out.count("中文") == 2
    assert not set(out) & set("\r\x1b\x9b\u2028\u202e\x7f\udc80")
    if form == "json":
        line = json.loads(out)
        assert line["message"] == line["model"] == HOSTILE


def test_a_plain_line_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="plain", level="info")
    log.info("listening", extra={"fields": {"port": 9000, "engine": "vllm"}})
    log.warning("no fields")
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(" ", 1)[1] == "info    listening port=9000 engine=vllm"
    assert second.split(" ", 1)[1] == "warning no fields"


def boom() -> None:
    raise RuntimeError("first\nsecond\x1b[31m")


@pytest.mark.parametrize("form", ["json", "plain"])
def test_a_traceback_stays_with_its_line(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form=form, level="info")
    try:
        boom()
    except RuntimeError:
        log.exception("broken")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    if form == "json":
        (line,) = out.splitlines()
        assert json.loads(line)["traceback"].endswith("RuntimeError: first\nsecond\x1b[31m")
    else:
        head, *rest = out.splitlines()
        assert head.endswith("error   broken")
        assert all(line.startswith("  ") for line in rest)
        assert rest[-1] == "  second\\x1b[31m"


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="warning")
    for name in ("wings_proxy.test", "aiohttp.server", "asyncio"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud")
    assert [(line["logger"], line["message"]) for line in json_lines(capsys)] == [
        ("wings_proxy.test", "loud"),
        ("aiohttp.server", "loud"),
        ("asyncio", "loud"),
    ]


def test_set_up_twice_a_line_still_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="info")
    set_up_logging(form="json", level="info")
    log.info("once")
    assert [line["message"] for line in json_lines(capsys)] == ["once"]


def test_a_field_that_json_does_not_know_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="info")
    log.info("x", extra={"fields": {"error": ValueError("why")}})
    assert json_lines(capsys)[0]["error"] == "why"


async def test_kept_lines_are_written_together_and_news_at_once_in_their_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines_kept = set_up_logging(form="plain", level="info")
    lines_kept.keep("first")
    lines_kept.keep("second")
    assert capsys.readouterr().out == ""
    logging.getLogger("wings_proxy.serve").warning("news")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second", "news"]


async def test_kept_lines_do_not_wait_longer_than_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="plain", level="info").keep("alone")
    out = ""
    async with asyncio.timeout(40):
        while not out:
            await asyncio.sleep(0.01)
            out = capsys.readouterr().out
    assert out.endswith("alone\n")


def test_with_nothing_kept_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="plain", level="info")
    (handler,) = logging.getLogger("wings_proxy").handlers
    handler.flush()
    assert capsys.readouterr().out == ""


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    lines = set_up_logging(form="json", level="info")
    lines.keep("kept where no loop runs")
    logging.getLogger("wings_proxy.serve").info("nobody reads this")
    assert lines.lost == 2


async def test_many_kept_lines_do_not_wait_for_their_time(capsys: pytest.CaptureFixture[str]) -> None:
    lines = set_up_logging(form="plain", level="info")
    for number in range(1000):
        lines.keep(str(number))
    written = capsys.readouterr().out.splitlines()
    assert 500 < len(written) < 1000
    lines.flush()
    assert capsys.readouterr().out.splitlines()[-1] == "999"


async def test_a_pipe_nobody_reads_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        lines = set_up_logging(form="plain", level="info")
        # Twenty megabytes: far more than the pipe holds, and than is kept for it.
        for _ in range(20):
            log.warning("%s", "x" * 1000)
            for _ in range(1000):
                lines.keep("y" * 1000)
        lost = lines.lost
        assert 10_000 < lost < 20_020
        os.close(reading)
        lines.close()
        assert lines.lost > lost


def test_what_is_kept_is_written_before_the_process_ends() -> None:
    code = (
        "from wings_proxy.telemetry.log import set_up_logging\n"
        "import logging\n"
        "lines = set_up_logging(form='plain', level='info')\n"
        "for number in range(2000): lines.keep(str(number))\n"
        "logging.getLogger('wings_proxy').info('last')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    written = ended.stdout.splitlines()
    assert written[:2000] == [str(number) for number in range(2000)]
    assert written[2000].endswith("last")


def test_a_process_whose_output_nobody_reads_ends_all_the_same() -> None:
    code = (
        "from wings_proxy.telemetry.log import set_up_logging\n"
        "lines = set_up_logging(form='plain', level='info')\n"
        "for _ in range(300): lines.keep('x' * 1000)\n"
    )
    reading, writing = os.pipe()
    ended = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, timeout=100)
    os.close(writing)
    os.close(reading)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_without_standard_output_every_line_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    lines = set_up_logging(form="json", level="info")
    log.info("nobody reads this")
    assert lines.lost == 1


def test_who_waits_for_the_lines_finds_them_written(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        monkeypatch.setattr(sys, "stdout", stream)
        lines = set_up_logging(form="plain", level="info")
        lines.keep("here")
        lines.flush()
        assert reader.readline() == "here\n"
        lines.close()
