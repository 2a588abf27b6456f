"""Fetch the engine's `/metrics` when somebody asks: one fetch at a time, bounded in time and in bytes.

Nothing of it is kept that is not let through, and no fetch is begun while nobody can be listening.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self

import aiohttp

from wings_proxy.config.kinds import shown
from wings_proxy.engines.base import Engine
from wings_proxy.engines.exposition import Exposition
from wings_proxy.engines.metrics import NOTHING, EngineSample, normalise
from wings_proxy.telemetry.single_flight import SingleFlight

_log = logging.getLogger(__name__)

# Then it is the streams' turn. A piece of a usual page takes a tenth of a millisecond; one of the shortest lines there
# can be takes one.
_PIECE_BYTES: Final = 4 * 1024


class ScrapeOutcome(Enum):
    """How a fetch ended."""

    IDLE = auto()  # not begun: nobody listens
    OK = auto()
    OFF = auto()  # the engine answers, and has no metrics: 404, 501, or a page without a line of its own
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class EnginePage:
    """What one fetch brought."""

    outcome: ScrapeOutcome
    text: bytes = b""
    """The engine's families, classic text format; empty unless OK."""
    sample: EngineSample = NOTHING
    at: float = 0.0
    """Monotonic time at which the fetch ended."""
    seconds: float = 0.0
    dropped_lines: int = 0
    """Lines of the engine's families that were left out."""
    epoch: int = 0
    """Of the engine's run."""


_IDLE: Final = EnginePage(ScrapeOutcome.IDLE)


class _PageError(Exception):
    """The page is not one we take; the message says why, in words of ours."""


def _outcome(exposition: Exposition | None) -> ScrapeOutcome:
    if exposition is None:
        return ScrapeOutcome.OFF
    if exposition.text:
        return ScrapeOutcome.OK
    # vLLM with --disable-log-stats has a page, and none of its own families on it. One that has them and cannot be
    # read is another thing: its log must not speak for it.
    return ScrapeOutcome.FAILED if exposition.dropped else ScrapeOutcome.OFF


class EngineScrape:
    """The engine's metrics, on demand."""

    def __init__(
        self,
        engine: Engine,
        port: int,
        *,
        timeout: float,
        max_bytes: int,
        api_key: bytes | None,
        clock: Callable[[], float],
        epoch: Callable[[], int],
        listening: Callable[[], bool],
    ) -> None:
        """Ask on *port* of 127.0.0.1 as long as *listening* says so; `epoch` tells one run from the next."""
        self._engine = engine
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._headers = {
            "User-Agent": "wings-infer-scrape",
            "Accept": "text/plain;version=0.0.4",
            # Nothing is unpacked here: a few kilobytes can become gigabytes.
            "Accept-Encoding": "identity",
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.decode('latin-1')}"
        self._clock = clock
        self._epoch = epoch
        self._listening = listening
        self._families = engine.metrics.names
        self._session: aiohttp.ClientSession | None = None
        self._complaint = ""
        self.page = SingleFlight(self._fetch)
        """Fetch, or share the fetch that is on its way. What goes wrong is a result, not an error."""
        self.succeeded_at: float | None = None
        """Monotonic time of the last fetch that brought families."""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        session, self._session = self._session, None
        await session.close()

    async def sample(self) -> EngineSample | None:
        """Return what the engine says of itself now; None if it says nothing in time."""
        page = await self.page()
        return page.sample if page.outcome is ScrapeOutcome.OK else None

    async def _fetch(self) -> EnginePage:
        if self._session is None or not self._listening():
            # Without a session: we are starting, or about to end, and answer all the same.
            return _IDLE
        began, epoch = self._clock(), self._epoch()
        outcome, why, exposition = ScrapeOutcome.FAILED, "", None
        try:
            async with asyncio.timeout(self._timeout):
                exposition = await self._read(self._session)
        except TimeoutError:
            why = f"no whole page within {self._timeout:g} s"
        except aiohttp.ClientConnectorError as error:
            why = f"cannot connect: {shown(os.strerror(error.errno) if error.errno else str(error))}"
        except (aiohttp.ClientError, ValueError) as error:
            # ValueError: what aiohttp raises for some answers that are not HTTP.
            why = f"not an answer: {shown(type(error).__name__)}"
        except _PageError as error:
            why = str(error)
        else:
            outcome = _outcome(exposition)
            if outcome is ScrapeOutcome.FAILED:
                why = "not one line of the page can be used"
        self._complain(why)
        now = self._clock()
        if self._epoch() != epoch:
            # Of a run that has ended meanwhile.
            return EnginePage(ScrapeOutcome.FAILED, at=now, seconds=now - began, epoch=epoch)
        if exposition is None:
            return EnginePage(outcome, at=now, seconds=now - began, epoch=epoch)
        if outcome is not ScrapeOutcome.OK:
            dropped = exposition.dropped
            return EnginePage(outcome, at=now, seconds=now - began, dropped_lines=dropped, epoch=epoch)
        self.succeeded_at = now
        sample = normalise(self._engine.metrics, exposition.samples)
        return EnginePage(outcome, exposition.text, sample, now, now - began, exposition.dropped, epoch)

    async def _read(self, session: aiohttp.ClientSession) -> Exposition | None:
        exposition = Exposition(self._engine.metric_prefix, self._families)
        async with session.get(self._url, allow_redirects=False) as response:
            # SGLang without --enable-metrics answers 404, llama.cpp without --metrics 501.
            if response.status in (404, 501):
                return None
            if response.status != 200:
                raise _PageError(f"the engine answered {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _PageError("the page is compressed, which was not asked for")
            read = 0
            while data := await response.content.readany():
                read += len(data)
                if read > self._max_bytes:
                    raise _PageError(f"the page is longer than {self._max_bytes} bytes")
                for begin in range(0, len(data), _PIECE_BYTES):
                    exposition.feed(data[begin : begin + _PIECE_BYTES])
                    await asyncio.sleep(0)
        exposition.end()
        return exposition

    def _complain(self, why: str) -> None:
        """Log a cause once, not once for each scrape."""
        if why and why != self._complaint:
            _log.warning("the engine's metrics cannot be read: %s", why)
        self._complaint = why
