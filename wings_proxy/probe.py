"""Ask the engine how it is: one health probe, and once for each run whether it is an inference engine at all."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import aiohttp

from wings_proxy.engines.base import Engine
from wings_proxy.lifecycle import Outcome, ProbeResult
from wings_proxy.setting_kinds import shown

# More than any engine's model list, less than a foreign server can hurt us with.
_LARGEST_BODY: Final = 1024 * 1024


class HealthProbe:
    """Probes one engine on 127.0.0.1, on a fresh connection each time: a pooled one says little about the listener."""

    def __init__(
        self, engine: Engine, port: int, *, timeout: float, api_key: bytes | None, clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._base = f"http://127.0.0.1:{port}"
        self._timeout = aiohttp.ClientTimeout(total=max(timeout, engine.health_seconds))
        self._headers = {"User-Agent": "wings-infer-probe"}
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
        assert self._session is not None
        async with self._session.get(self._base + path, allow_redirects=False) as response:
            body = b""
            while len(body) < _LARGEST_BODY and (part := await response.content.readany()):
                body += part
            return response.status, body


def _is_model_list(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["data"], list)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


# While the engine is not ready a second is soon enough to be noticed by nobody, and costs nothing.
_EAGER_SECONDS: Final = 1.0
# A listener that is gone is gone 100 ms later too; one that restarts its accept loop is not.
_SOON_SECONDS: Final = 0.1


class Prober:
    """Probes at the right pace, one probe at a time."""

    def __init__(self, probe: HealthProbe, *, interval: float) -> None:
        self._probe = probe
        self._interval = interval
        self._soon = asyncio.Event()

    def soon(self) -> None:
        """Probe again in 100 ms instead of at the next interval."""
        self._soon.set()

    async def run(
        self, epoch: Callable[[], int], ready: Callable[[], bool], emit: Callable[[ProbeResult], None]
    ) -> None:
        """Probe until cancelled; each result goes to `emit`."""
        while True:
            emit(await self._probe.ask(epoch()))
            try:
                async with asyncio.timeout(self._interval if ready() else min(self._interval, _EAGER_SECONDS)):
                    await self._soon.wait()
                    await asyncio.sleep(_SOON_SECONDS)
            except TimeoutError:
                pass
            self._soon.clear()
