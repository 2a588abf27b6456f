"""Fetching the engine's page, whatever the engine does with it."""

from __future__ import annotations

import asyncio
import gzip
import logging

import pytest

from tests.telemetry.pages import Answer, hang, stand, whole
from wings_proxy.engines import ENGINES
from wings_proxy.engines.metrics import EngineSample
from wings_proxy.telemetry.engine_scrape import EngineScrape, ScrapeOutcome

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\nwings_engine_state 7\nvllm:a one\n"


async def test_what_the_engine_says_of_itself() -> None:
    async with stand(whole(PAGE)) as bench:
        page = await bench.scrape.page()
        assert page.outcome is ScrapeOutcome.OK
        assert page.text == b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\n"
        assert page.sample == EngineSample(running=3.0)
        assert (page.dropped_lines, page.epoch, page.at) == (1, 1, 100.0)
        assert bench.scrape.succeeded_at == 100.0
        assert await bench.scrape.sample() == EngineSample(running=3.0)


async def test_it_asks_for_the_classic_text_unpacked_and_shows_the_engines_key() -> None:
    async with stand(whole(PAGE), key=b"secret") as bench:
        await bench.scrape.page()
        (request,) = bench.requests
        head = request.lower()
        assert head.startswith(b"get /metrics http/1.1\r\n")
        assert b"\r\naccept: text/plain;version=0.0.4\r\n" in head
        assert b"\r\naccept-encoding: identity\r\n" in head
        assert b"\r\nauthorization: bearer secret\r\n" in head


async def test_one_fetch_for_everybody_who_asks_at_once() -> None:
    async with stand(whole(PAGE)) as bench:
        pages = await asyncio.gather(*(bench.scrape.page() for _ in range(10)))
        assert len(bench.requests) == 1
        assert all(page is pages[0] for page in pages)


async def test_nobody_is_asked_while_nobody_listens() -> None:
    async with stand(whole(PAGE)) as bench:
        bench.listening = False
        assert (await bench.scrape.page()).outcome is ScrapeOutcome.IDLE
        assert await bench.scrape.sample() is None
        assert bench.requests == []


async def test_it_is_asked_while_we_start_and_end_too() -> None:
    async with stand(whole(PAGE)) as bench:
        scrape = bench.scrape
    assert (await scrape.page()).outcome is ScrapeOutcome.IDLE


@pytest.mark.parametrize(
    "answer",
    [
        whole(b"", "404 Not Found"),  # SGLang without --enable-metrics
        whole(b"", "501 Not Implemented"),  # llama.cpp without --metrics
        whole(b"# TYPE python_info gauge\npython_info 1\n"),  # vLLM with --disable-log-stats
        whole(b"<html></html>"),
    ],
)
async def test_an_engine_without_metrics(answer: Answer) -> None:
    async with stand(whole(PAGE)) as bench:
        bench.answer = answer
        assert (await bench.scrape.page()).outcome is ScrapeOutcome.OFF
        assert await bench.scrape.sample() is None
        assert bench.scrape.succeeded_at is None


@pytest.mark.parametrize("page", [b"vllm:a one\n", b"# HELP vllm:a \\t\n", b"x" * 70_000])
async def test_a_page_of_which_nothing_can_be_used_is_not_a_page_that_is_not_there(
    page: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with stand(whole(page)) as bench:
        found = await bench.scrape.page()
        assert (found.outcome, found.dropped_lines, found.text) == (ScrapeOutcome.FAILED, 1, b"")
        assert await bench.scrape.sample() is None
        assert bench.scrape.succeeded_at is None
        assert caplog.messages == ["the engine's metrics cannot be read: not one line of the page can be used"]


async def cut_short(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + PAGE)


async def nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01 what\r\n\r\n")


async def silent(writer: asyncio.StreamWriter) -> None:
    pass


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (whole(b"", "500 Internal Server Error"), "the engine answered 500"),
        (whole(b"", "302 Found", b"location: http://127.0.0.1:1/"), "the engine answered 302"),
        (whole(gzip.compress(PAGE), "200 OK", b"content-encoding: gzip"), "compressed"),
        (whole(PAGE * 20_000), "longer than 1048576 bytes"),
        (cut_short, "not an answer"),
        (nonsense, "not an answer"),
        (silent, "not an answer"),
    ],
)
async def test_a_page_that_is_none_is_told_once(answer: Answer, why: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with stand(whole(PAGE)) as bench:
        bench.answer = answer
        for _ in range(2):
            page = await bench.scrape.page()
            assert (page.outcome, page.text, page.sample) == (ScrapeOutcome.FAILED, b"", EngineSample())
        assert bench.scrape.succeeded_at is None
        assert [why in message for message in caplog.messages] == [True]
        bench.answer = whole(PAGE)
        assert (await bench.scrape.page()).outcome is ScrapeOutcome.OK


async def test_a_line_without_end_is_cut_off_at_the_cap() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"vllm:" * 10_000)
            sent += 50_000
            await writer.drain()

    async with stand(whole(PAGE)) as bench:
        bench.answer = endless
        assert (await bench.scrape.page()).outcome is ScrapeOutcome.FAILED
        # The cap, and what the two sockets hold.
        assert sent < 32 << 20


async def test_an_engine_that_hangs_is_waited_for_no_longer_than_the_time_out() -> None:
    async with stand(whole(PAGE), within=0.05) as bench:
        bench.answer = hang
        assert (await bench.scrape.page()).outcome is ScrapeOutcome.FAILED


async def test_nobody_there(unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
    scrape = EngineScrape(
        ENGINES["vllm"],
        unused_tcp_port,
        timeout=30.0,
        max_bytes=1000,
        api_key=None,
        clock=lambda: 0.0,
        epoch=lambda: 0,
        listening=lambda: True,
    )
    async with scrape:
        assert (await scrape.page()).outcome is ScrapeOutcome.FAILED
    assert "Connection refused" in caplog.text


async def test_what_an_engine_said_that_has_ended_meanwhile_is_not_told() -> None:
    async with stand(whole(PAGE)) as bench:

        async def restart(writer: asyncio.StreamWriter) -> None:
            bench.epoch += 1
            await whole(PAGE)(writer)

        bench.answer = restart
        page = await bench.scrape.page()
        assert (page.outcome, page.text) == (ScrapeOutcome.FAILED, b"")
