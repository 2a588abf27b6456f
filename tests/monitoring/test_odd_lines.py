"""Whatever passes of an engine's page, the real Prometheus reads: one line it cannot take costs the whole scrape."""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from tests.engines.test_exposition import PAGE
from tests.monitoring.files import program
from tests.monitoring.prometheus import prometheus
from tests.ports import free_port
from wings_proxy.engines.exposition import Exposition

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"]), pytest.mark.timeout(120)]

ODD: Final = [
    b'vllm:a{x="\x00"} 1\n',
    b"# HELP vllm:a x\x00y\n# TYPE vllm:a gauge\nvllm:a 1\n",
    b'vllm:a{x="a\x01\x7f\xe2\x80\xa8"} 1\n',
    b'vllm:a{le="1"} 1\n',
    b"# TYPE vllm:h histogram\nvllm:h_bucket 1\nvllm:h 2\n",
    b'# TYPE vllm:h histogram\nvllm:h_bucket{le="NaN"} 1\nvllm:h_sum NaN\nvllm:h_count -1\n',
    b'# TYPE vllm:s summary\nvllm:s{quantile="NaN"} 1\nvllm:s 1\n',
    b'# TYPE vllm:a histogram\n# TYPE vllm:a_count counter\nvllm:a_count 1\nvllm:a_bucket{le="1"} 1\n',
    b"# TYPE vllm:a summary\n# HELP vllm:a_sum x\n# HELP vllm:a x\nvllm:a_sum 1\n# TYPE vllm:a_sum gauge\n",
    b'vllm:a{x="' + b"y" * 60_000 + b'"} 1\n',
    b"vllm:" + b"a" * 60_000 + b" 1\n",
    b"vllm:a{" + b",".join(b'l%d="1"' % number for number in range(3000)) + b"} 1\n",
    b"# HELP vllm:a\n# HELP vllm:b \nvllm:a 1\n",
    b'vllm:a{instance="x",job="y",exported_job="z"} 1\n',
    b"vllm:a 1.\nvllm:b .5\nvllm:c +1\nvllm:d 1e+5\nvllm:e 00012\nvllm:f 1e0009\nvllm:g +Inf\nvllm:h 1e-9999\n",
    b'vllm:a {x="1"} 1\n',
    b'vllm:a{x="1",} 1\n',
    b"vllm:a 1 1\nvllm:b 1 999999999999999\nvllm:c 1 -999999999999999\n",
    b"vllm:up 1\n",
]
# Prometheus refuses these as they are: were they taken, nothing would be shown by those that pass.
REFUSED: Final = [
    b'vllm:a{x="\xff"} 1\n',
    b"vllm:a 1 1e5\n",
    b"vllm:a 1e999\n",
    b'vllm:a{x="1} 1\n',
    b"vllm:a one\n",
]
SPICE: Final = [
    *(b"\x00", b"\xff", b'"', b"\\", b"{", b"}", b",", b" ", b"\t", b"#", b"=", b"\r", b"1", b"e", b"+", b"-", b"."),
    *(b"Inf", b"NaN", b"nan", b'le="', b"0x1", b"\x7f", b"{}", b"@", b"_", b"\\n", b'\\"', b"\\t", b"TYPE", b"HELP"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf4\x8f\xbf\xbf", b"\xe2\x80\xa8", b"__name__"),
]


def passed(page: bytes) -> bytes:
    exposition = Exposition("vllm:", frozenset())
    exposition.feed(page)
    exposition.end()
    return exposition.text


def changed(line: bytes, chance: random.Random) -> bytes:
    """The line with a few bytes more, less or others."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(line) + 1)
        match chance.randrange(3):
            case 0:
                line = line[:place] + chance.choice(SPICE) + line[place:]
            case 1:
                line = line[:place] + line[place + chance.randrange(1, 4) :]
            case _:
                line = line[:place] + bytes([chance.randrange(256)]) + line[place + 1 :]
    return line


def changed_lines(count: int) -> list[bytes]:
    """Lines that pass although somebody meddled with them, always the same ones."""
    chance = random.Random(5)
    found: list[bytes] = []
    lines = PAGE.splitlines()
    while len(found) < count:
        if text := passed(changed(chance.choice(lines), chance) + b"\n"):
            found.append(text)
    return found


async def test_prometheus_reads_every_line_that_passes(tmp_path: Path) -> None:
    pages = [passed(page) for page in ODD] + changed_lines(300) + REFUSED
    runner = web.AppRunner(web.Application())

    async def answer(request: web.Request) -> web.Response:
        body = pages[int(request.match_info["number"])] + b"wings_ours 1\n"
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    runner.app.router.add_get("/{number}", answer)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        targets_by_number = {str(number): port for number in range(len(pages))}
        # Scraped evenly over this time; a page that comes late on a busy machine is not one that cannot be read.
        async with prometheus(tmp_path, targets_by_number, path="/{pod}", interval="10s") as server:

            async def looked() -> list[dict[str, Any]]:
                found: list[dict[str, Any]] = (await server.api("targets", state="active"))["activeTargets"]
                return [] if any(target["health"] == "unknown" for target in found) else found

            targets = await server.until("every page was looked at", looked, 60.0)
    finally:
        await runner.cleanup()
    assert len(targets) == len(pages)
    down = {int(target["labels"]["pod"]): target["lastError"] for target in targets if target["health"] != "up"}
    first_refused = len(pages) - len(REFUSED)
    assert {pages[number]: error for number, error in down.items() if number < first_refused} == {}
    assert sorted(down) == list(range(first_refused, len(pages)))


async def test_so_does_the_parser_of_the_pushgateway_and_of_promtool() -> None:
    async def error(page: bytes) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *(program("promtool"), "check", "metrics"), stdin=subprocess.PIPE, stdout=-1, stderr=subprocess.STDOUT
        )
        said, _ = await process.communicate(page + b"ours 1\n")
        return said if b"error while linting" in said else b""

    for page in map(passed, ODD):
        assert await error(page) == b"", page[:200]
    lines = changed_lines(20)
    assert [line for line in lines if await error(line)] == []
    for page in REFUSED:
        assert await error(page), page
