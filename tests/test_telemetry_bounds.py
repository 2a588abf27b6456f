"""What an engine can make us hold in memory: a page of 200 MB, a log line of 100 MB. Measured from outside."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as read_classic

from tests.pod import Pod
from wings_proxy.lifecycle.engine_log import LogCounts
from wings_proxy.lifecycle.log_tail import tail_engine_log

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"]), pytest.mark.timeout(180)]

MIB = 1 << 20
PAGE_BYTES = 200 * MIB
LINE_BYTES = 100 * MIB
# What Prometheus waits for a page unless it is told otherwise.
SCRAPER_WAITS_SECONDS = 10.0


class HugeEngine:
    """An engine that is well, but for its `/metrics`: 200 MiB of sound samples, no series twice."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.sent = 0
        self.whole = 0
        lines = (
            b'vllm:huge{part="%%04d",line="%06d",filling="xxxxxxxxxxxxxxxx"} 1\n' % number for number in range(16_384)
        )
        self._part = b"".join(lines)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /metrics "):
                    await self._page(writer)
                else:
                    body = b'{"object":"list","data":[{"id":"/models/tiny-qwen2"}]}'
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
                    )
                    writer.write(body)
                await writer.drain()
        writer.close()

    async def _page(self, writer: asyncio.StreamWriter) -> None:
        self.scrapes += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % PAGE_BYTES)
        left, part = PAGE_BYTES, 0
        while left:
            piece = self._part.replace(b"%04d", b"%04d" % part)[:left]
            writer.write(piece)
            await writer.drain()
            left, part = left - len(piece), part + 1
            self.sent += len(piece)
        self.whole += 1


def memory(pid: int, kind: str) -> float:
    """A figure of `/proc/PID/status` in MiB: `VmRSS` now, `VmHWM` the most there was."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1024


def forget_the_most(pid: int) -> None:
    """Count `VmHWM` from now on (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def sample(page: bytes, name: str) -> float | None:
    found = [each for family in read_classic(page.decode()) for each in family.samples if each.name == name]
    return found[0].value if found else None


@asynccontextmanager
async def sidecar_before(engine: HugeEngine | None) -> AsyncIterator[tuple[Pod, int]]:
    """A sidecar of its own process, and its pid."""
    async with Pod() as pod:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", pod.engine_port) if engine else None
        try:
            pod.sidecar.start()
            await pod.until_state(*(("ready",) if engine else ("waiting", "starting")))
            assert pod.sidecar.pid is not None
            yield pod, pod.sidecar.pid
        finally:
            if server is not None:
                server.close()


async def test_a_page_of_200_mb_costs_its_part_of_ours_and_a_bounded_piece_of_memory() -> None:
    engine = HugeEngine()
    async with sidecar_before(engine) as (pod, pid):
        before = memory(pid, "VmRSS")
        forget_the_most(pid)
        slowest, probes = 0.0, 0
        for number in range(1, 9):
            began = time.monotonic()
            scrape = asyncio.create_task(pod.get("/metrics"))
            while not scrape.done():
                # The loop is not taken meanwhile.
                assert (await pod.get("/livez"))[0] == 200
                probes += 1
            status, page = await scrape
            slowest = max(slowest, time.monotonic() - began)
            assert status == 200
            assert sample(page, "wings_engine_scrape_success") == 0.0
            assert sample(page, "wings_engine_state_age_seconds") is not None
            assert b"vllm:huge" not in page
            assert engine.scrapes == number, "this scrape really met the page"
        most, after = memory(pid, "VmHWM"), memory(pid, "VmRSS")
        print(
            f"\n{engine.sent / MIB:.0f} MiB sent in {engine.scrapes} scrapes; slowest {slowest:.2f} s, {probes} probes"
            f" meanwhile; resident MiB: {before:.1f} before, {most:.1f} at most, {after:.1f} after"
        )
        assert slowest < SCRAPER_WAITS_SECONDS
        assert engine.whole == 0, "nobody reads on after the cap"
        assert engine.sent > 8 * MIB, "there was a page to read"
        # What was let through (at most 16 MiB), once more to grow it, and 65 536 hashes.
        assert most - before < 64
        assert after - before < 64


async def test_a_log_line_of_100_mb_at_once_is_passed_over_and_counted() -> None:
    async with sidecar_before(None) as (pod, pid):
        log = pod.volume / "engine.log"
        log.write_bytes(b"begin\n")
        await counted(pod, lambda lines, _: lines == 1)
        before = memory(pid, "VmRSS")
        forget_the_most(pid)
        with log.open("ab") as file:
            for _ in range(LINE_BYTES // MIB):
                file.write(b"x" * MIB)
            file.write(b"\nend\n")
        # Every byte of the line is dropped, but for its first 4096 where a read came early enough to see them. There is
        # a line before it, and one after.
        lines, dropped = await counted(pod, lambda lines, dropped: dropped == LINE_BYTES - 4096 * (lines - 2))
        most = memory(pid, "VmHWM")
        print(
            f"\n{lines:.0f} lines, {dropped:.0f} bytes dropped; resident MiB: {before:.1f} before, {most:.1f} at most"
        )
        assert lines in (2, 3)
        assert most - before < 8


async def counted(pod: Pod, wanted: Callable[[float, float], bool]) -> tuple[float, float]:
    """Wait until the lines that were read and the bytes that were not are as wanted; return both."""
    async with asyncio.timeout(60):
        while True:
            _, page = await pod.get("/metrics")
            read = sample(page, "wings_engine_log_lines_total") or 0.0
            lost = sample(page, "wings_engine_log_dropped_bytes_total") or 0.0
            if wanted(read, lost):
                return read, lost
            await asyncio.sleep(0.05)


class Longest:
    """Is shown every line; keeps the length of the longest."""

    length = 0

    def see(self, line: str, _now: float) -> None:
        self.length = max(self.length, len(line))

    def forget(self) -> None:
        pass


async def test_a_log_line_of_100_mb_piece_by_piece_is_never_held(tmp_path: Path) -> None:
    path, counts, longest = tmp_path / "engine.log", LogCounts(), Longest()
    path.write_bytes(b"begin\n")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            tail_engine_log(
                path,
                (),
                epoch=lambda: 1,
                loading=lambda: True,
                emit=lambda _: None,
                reader=longest,
                counts=counts,
                clock=lambda: 0.0,
                intervals=(0.0, 0.0),
            )
        )
        while counts.lines < 1:  # noqa: ASYNC110 - the counts ring no bell
            await asyncio.sleep(0)
        tracemalloc.start()
        piece, written = b"x" * 131_072, 0
        with path.open("ab", buffering=0) as file:
            while written < LINE_BYTES:
                file.write(piece)
                written += len(piece)
                while counts.dropped_bytes < written - 4096:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            file.write(b"\nend\n")
        while counts.lines < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
    print(f"\n{most / MIB:.2f} MiB at most, {counts}")
    assert counts == LogCounts(lines=3, dropped_bytes=LINE_BYTES - 4096)
    assert longest.length == 4096
    assert most < 2 * MIB
