"""Our log lines: one a line whatever is in them, for machines and for people."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from wings_proxy.log import _LineHandler, set_up_logging

LOGGERS = ("wings_proxy", "wings_proxy.access", "aiohttp", "asyncio")
log = logging.getLogger("wings_proxy.test")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_a_json_line_says_when_how_bad_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="info", access=True)
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
    set_up_logging(form=form, level="info", access=True)
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
    set_up_logging(form="plain", level="info", access=True)
    log.info("listening", extra={"fields": {"port": 9000, "engine": "vllm"}})
    log.warning("no fields")
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(" ", 1)[1] == "info    listening port=9000 engine=vllm"
    assert second.split(" ", 1)[1] == "warning no fields"


def boom() -> None:
    raise RuntimeError("first\nsecond\x1b[31m")


@pytest.mark.parametrize("form", ["json", "plain"])
def test_a_traceback_stays_with_its_line(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form=form, level="info", access=True)
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
    set_up_logging(form="json", level="warning", access=True)
    for name in ("wings_proxy.test", "aiohttp.server", "asyncio"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud")
    assert [(line["logger"], line["message"]) for line in json_lines(capsys)] == [
        ("wings_proxy.test", "loud"),
        ("aiohttp.server", "loud"),
        ("asyncio", "loud"),
    ]


@pytest.mark.parametrize(("access", "lines"), [(True, 1), (False, 0)])
def test_the_access_log_is_switched_by_itself(access: bool, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="error", access=access)
    logging.getLogger("wings_proxy.access").info("request")
    assert len(json_lines(capsys)) == lines


def test_set_up_twice_a_line_still_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="info", access=True)
    set_up_logging(form="json", level="info", access=True)
    log.info("once")
    assert [line["message"] for line in json_lines(capsys)] == ["once"]


def test_a_field_that_json_does_not_know_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="json", level="info", access=True)
    log.info("x", extra={"fields": {"error": ValueError("why")}})
    assert json_lines(capsys)[0]["error"] == "why"


async def test_access_lines_are_written_together_and_news_at_once_in_their_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging(form="plain", level="info", access=True)
    access = logging.getLogger("wings_proxy.access")
    access.info("first")
    access.info("second")
    assert capsys.readouterr().out == ""
    logging.getLogger("wings_proxy.serve").warning("news")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["first", "second", "news"]


async def test_access_lines_do_not_wait_longer_than_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="plain", level="info", access=True)
    logging.getLogger("wings_proxy.access").info("alone")
    out = ""
    async with asyncio.timeout(5):
        while not out:
            await asyncio.sleep(0.01)
            out = capsys.readouterr().out
    assert out.endswith("alone\n")


def test_with_nothing_kept_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(form="plain", level="info", access=True)
    (handler,) = logging.getLogger("wings_proxy").handlers
    handler.flush()
    assert capsys.readouterr().out == ""


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    set_up_logging(form="json", level="info", access=True)
    logger = logging.getLogger("wings_proxy.serve")
    logger.info("nobody reads this")
    (handler,) = logging.getLogger("wings_proxy").handlers
    assert isinstance(handler, _LineHandler)
    assert handler.lost == 1
