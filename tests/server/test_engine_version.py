"""The engine's version is asked for once a run, and whatever it answers is one short line or nothing."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.ports import free_port
from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle.state import Snapshot, State
from wings_proxy.server.engine_version import EngineVersion


class Engine:
    """Answers `/version`, and keeps who asked."""

    def __init__(self) -> None:
        self.body: bytes = b'{"version": "0.32.0"}'
        self.status = 200
        self.keys: list[str | None] = []
        self.encodings: set[str | None] = set()
        self.fields: dict[str, str] = {}
        self.server: TestServer | None = None
        self.snapshot = Snapshot(State.READY, 0.0, "", "", epoch=1)
        self.now = 100.0

    async def answer(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        self.encodings.add(request.headers.get("Accept-Encoding"))
        return web.Response(status=self.status, body=self.body, headers=self.fields)

    def version(self, *, key: bytes | None = None) -> EngineVersion:
        assert self.server is not None
        port = self.server.port
        assert port is not None
        return EngineVersion(port, ENGINES["vllm"], key, lambda: self.snapshot, lambda: self.now)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    app = web.Application()
    app.router.add_get("/version", made.answer)
    made.server = TestServer(app)
    async with made.server:
        yield made


async def test_it_is_asked_once_a_run(engine: Engine) -> None:
    version = engine.version()
    assert {*await asyncio.gather(version.get(), version.get())} == {"0.32.0"}
    assert engine.keys == [None]
    engine.snapshot = replace(engine.snapshot, epoch=2)
    engine.body = b'{"version": "0.33.0"}'
    assert await version.get() == "0.33.0"
    assert len(engine.keys) == 2


async def test_what_is_known_of_a_run_stays_known_while_it_is_not_well(engine: Engine) -> None:
    version = engine.version()
    assert await version.get() == "0.32.0"
    engine.snapshot = replace(engine.snapshot, state=State.UNHEALTHY)
    assert await version.get() == "0.32.0"
    engine.snapshot = replace(engine.snapshot, state=State.LOADING, epoch=2)
    assert await version.get() is None


async def test_the_engines_key_is_shown_to_it(engine: Engine) -> None:
    assert await engine.version(key=b"secret").get() == "0.32.0"
    assert engine.keys == ["Bearer secret"]


async def test_an_engine_that_is_not_well_is_not_asked(engine: Engine) -> None:
    engine.snapshot = replace(engine.snapshot, state=State.UNHEALTHY)
    assert await engine.version().get() is None
    assert engine.keys == []


async def test_one_that_did_not_say_is_asked_again_later(engine: Engine) -> None:
    engine.status = 503
    version = engine.version()
    assert await version.get() is None
    engine.status = 200
    assert await version.get() is None
    assert len(engine.keys) == 1
    engine.now += 30
    assert await version.get() == "0.32.0"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"other": 1}', b'{"version": 7}', b'{"version": ""}', b" " * 600_000, b"[" * 9999]
)
async def test_no_version_is_no_version(engine: Engine, body: bytes) -> None:
    engine.body = body
    assert await engine.version().get() is None


async def test_what_is_packed_is_not_unpacked(engine: Engine) -> None:
    engine.body, engine.fields = gzip.compress(engine.body), {"Content-Encoding": "gzip"}
    assert await engine.version().get() is None
    assert engine.encodings == {"identity"}


async def test_a_long_or_dirty_one_is_one_short_line(engine: Engine) -> None:
    engine.body = b'{"version": "1\\n\\u001b[31m' + b"x" * 500 + b'"}'
    version = await engine.version().get()
    assert version is not None
    assert version.startswith("1\\n\\x1b[31mxxx")
    assert len(version) < 120


async def test_nobody_there_is_no_version() -> None:
    snapshot = Snapshot(State.READY, 0.0, "", "")
    version = EngineVersion(free_port(), ENGINES["vllm"], None, lambda: snapshot)
    assert await version.get() is None


async def test_an_engine_that_tells_it_nowhere_is_not_asked(engine: Engine) -> None:
    assert engine.server is not None
    port = engine.server.port
    assert port is not None
    kind = replace(ENGINES["vllm"], version_source=None)
    assert await EngineVersion(port, kind, None, lambda: engine.snapshot).get() is None
    assert engine.keys == []


def test_every_engine_tells_it_somewhere() -> None:
    assert {name: engine.version_source for name, engine in ENGINES.items()} == {
        "vllm": ("/version", "version"),
        "sglang": ("/server_info", "version"),
        "llamacpp": ("/props", "build_info"),
    }
