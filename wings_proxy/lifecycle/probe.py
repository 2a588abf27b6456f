"""Ask the engine: how it is, once for each run whether it is an engine at all, and of a stalled one some work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import aiohttp

from wings_proxy.config.kinds import shown
from wings_proxy.engines.base import Engine
from wings_proxy.lifecycle.state import Outcome, ProbeResult

# More than any engine's model list, less than a foreign server can hurt us with.
_LARGEST_BODY: Final = 1024 * 1024
# A model that generates nothing refuses the first.
_LEAST_WORK: Final = (
    ("/v1/completions", {"prompt": "1", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "1"}),
)


class HealthProbe:
    """Probes one engine on 127.0.0.1, on a fresh connection each time: a pooled one says little about the listener."""

    def __init__(
        self, engine: Engine, port: int, *, timeout: float, api_key: bytes | None, clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._base = f"http://127.0.0.1:{port}"
        self._timeout = aiohttp.ClientTimeout(total=max(timeout, engine.health_seconds))
        # Nothing is unpacked here: a few kilobytes can become gigabytes.
        self._headers = {"User-Agent": "wings-infer-probe", "Accept-Encoding": "identity"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.decode('latin-1')}"
        self._clock = clock
        self._identified_epoch: int | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            headers=self._headers,
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, epoch: int) -> ProbeResult:
        """Probe once. What goes wrong is a result, not an error."""
        began = self._clock()
        try:
            outcome, detail = await self._ask(epoch)
        except aiohttp.ClientConnectorError as error:
            # Any other error is ours (no descriptor left, for one) and says nothing of who listens.
            refused = isinstance(error.os_error, ConnectionRefusedError)
            outcome = Outcome.REFUSED if refused else Outcome.BROKEN
            detail = f"cannot connect to the engine: {shown(os.strerror(error.errno) if error.errno else str(error))}"
        except TimeoutError:
            outcome, detail = Outcome.TIMEOUT, f"no answer within {self._timeout.total:g} s"
        except (aiohttp.ClientError, ValueError) as error:
            # ValueError: what aiohttp raises for some answers that are not HTTP.
            outcome, detail = Outcome.BROKEN, f"not an answer: {shown(type(error).__name__)}"
        return ProbeResult(epoch, began, outcome, detail)

    async def ask_for_a_token(self, seconds: float) -> None:
        """Give the engine the least work there is; return when it is done, refused, or *seconds* are over.

        What came of it the engine's counters tell. One that hangs keeps the request for so long, and is rid of it when
        we hang up.
        """
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with asyncio.timeout(seconds):
                _, models = await self._get("/v1/models")
                for path, work in _LEAST_WORK:
                    request = {"model": _first_model(models), **work}
                    unlimited = aiohttp.ClientTimeout(total=None)
                    async with self._session_there.post(
                        self._base + path, json=request, allow_redirects=False, timeout=unlimited
                    ) as response:
                        if response.status == 200:
                            await self._body_of(response)
                            return

    async def _ask(self, epoch: int) -> tuple[Outcome, str]:
        path = self._engine.health_path
        status, _ = await self._get(path)
        if status != 200:
            return Outcome.UNHEALTHY, f"{path} answered {status}"
        if self._identified_epoch == epoch:
            return Outcome.HEALTHY, ""
        # vLLM binds its port at the start and listens at the end of its load: another process can answer meanwhile.
        status, body = await self._get("/v1/models")
        if status in (401, 403) or (status == 200 and _is_model_list(body)):
            self._identified_epoch = epoch
            return Outcome.HEALTHY, ""
        return Outcome.FOREIGN, f"{path} answered 200, but /v1/models {status} without a model list: not an engine"

    async def _get(self, path: str) -> tuple[int, bytes]:
        async with self._session_there.get(self._base + path, allow_redirects=False) as response:
            return response.status, await self._body_of(response)

    async def _body_of(self, response: aiohttp.ClientResponse) -> bytes:
        body = b""
        while len(body) < _LARGEST_BODY and (part := await response.content.readany()):
            body += part
        return body

    @property
    def _session_there(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session


def _is_model_list(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["data"], list)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _first_model(body: bytes) -> str:
    """Return the name of a model of the engine's list; an empty one if it has none."""
    try:
        name = json.loads(body)["data"][0]["id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""


# While the engine is not ready a second is soon enough to be noticed by nobody, and costs nothing.
_EAGER_SECONDS: Final = 1.0
# A listener that is gone is gone 100 ms later too; one that restarts its accept loop is not.
_SOON_SECONDS: Final = 0.1


# How an engine that has too much to do answers its probes.
_MAY_BE_BUSY: Final = frozenset({Outcome.UNHEALTHY, Outcome.TIMEOUT, Outcome.BROKEN})


class Prober:
    """Probes at the right pace, one probe at a time."""

    def __init__(self, probe: HealthProbe, *, interval: float, worked: Callable[[], Awaitable[bool]]) -> None:
        """`worked` looks whether the engine's counters move, when a probe has failed: busy is not dead."""
        self._probe = probe
        self._interval = interval
        self._worked = worked
        self._soon = asyncio.Event()

    def soon(self) -> None:
        """Probe again in 100 ms instead of at the next interval."""
        self._soon.set()

    async def run(
        self, epoch: Callable[[], int], ready: Callable[[], bool], emit: Callable[[ProbeResult], None]
    ) -> None:
        """Probe until cancelled; each result goes to `emit`."""
        while True:
            result = await self._probe.ask(epoch())
            if result.outcome in _MAY_BE_BUSY and await self._worked():
                result = replace(result, worked=True)
            emit(result)
            try:
                async with asyncio.timeout(self._interval if ready() else min(self._interval, _EAGER_SECONDS)):
                    await self._soon.wait()
                    await asyncio.sleep(_SOON_SECONDS)
            except TimeoutError:
                pass
            self._soon.clear()
