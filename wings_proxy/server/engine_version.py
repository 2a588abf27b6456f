"""Which version of the engine runs, for the status page: asked once for each run, by whoever looks first."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Final

import aiohttp

from wings_proxy.config.kinds import shown
from wings_proxy.engines.base import Engine
from wings_proxy.lifecycle.state import Snapshot

# SGLang tells its version among all of its settings: 37 kB.
_LARGEST: Final = 512 * 1024
_SECONDS: Final = 1.0
# An engine that did not say is not asked at every look.
_PAUSE_SECONDS: Final = 30.0


class EngineVersion:
    """Asks a healthy engine where its kind tells (`Engine.version_source`)."""

    def __init__(
        self,
        port: int,
        engine: Engine,
        api_key: bytes | None,
        snapshot: Callable[[], Snapshot],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._source = engine.version_source
        self._headers = {
            "Accept-Encoding": "identity"
        }  # nothing is unpacked here, for a few kilobytes can be gigabytes
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key.decode('latin-1')}"
        self._snapshot = snapshot
        self._clock = clock
        self._known: tuple[int, str | None] | None = None
        self._again_at = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> str | None:
        """Return the version as the engine writes it, fit for one line; None while it is not known."""
        snapshot = self._snapshot()
        epoch = snapshot.epoch
        if not snapshot.healthy:
            return self._known[1] if self._known is not None and self._known[0] == epoch else None
        async with self._lock:
            asked = self._known is not None and self._known[0] == epoch
            if not asked or (self._known == (epoch, None) and self._clock() >= self._again_at):
                self._known = epoch, None if self._source is None else await self._ask(*self._source)
                self._again_at = self._clock() + _PAUSE_SECONDS
            assert self._known is not None
            return self._known[1]

    async def _ask(self, path: str, key: str) -> str | None:
        try:
            timeout = aiohttp.ClientTimeout(total=_SECONDS)
            async with (
                aiohttp.ClientSession(
                    timeout=timeout, trust_env=False, headers=self._headers, auto_decompress=False
                ) as session,
                session.get(f"http://127.0.0.1:{self._port}{path}", allow_redirects=False) as answer,
            ):
                body = b""
                while len(body) <= _LARGEST and (piece := await answer.content.readany()):
                    body += piece
            version = json.loads(body)[key] if answer.status == 200 and len(body) <= _LARGEST else None
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, RecursionError):
            # ValueError: also what aiohttp raises for some answers that are not HTTP.
            return None
        return shown(version) if isinstance(version, str) and version else None
