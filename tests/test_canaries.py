"""Secrets, prompts and query strings come out nowhere: each is sent along every path, then everything is searched."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.fake_engine import Fault, Metrics, StartEngine
from tests.ports import free_port

# A word of no other meaning: the directory of this test has the plain one in its name.
CANARY = "c4n4ry"
CHAT = "/v1/chat/completions"
RUN = "00000000-0000-4000-8000-000000000001"

# What strangers and friends send, by hand: as it stands on the wire.
RAW = (
    b"GET /v1/models?c4n4ry=1 HTTP/1.1\r\nhost: c4n4ry-host\r\nauthorization: Bearer c4n4ry-wrong\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Basic Y2FuYXJ5 c4n4ry\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-api-key: c4n4ry-wrong\r\ncookie: c4n4ry\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx-request-id: c4n4ry \x1b[31m\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\ntraceparent: 00-c4n4ry-1-1\r\n\r\n",
    b"GET /c4n4ry/%63c4n4ry HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /sleep?c4n4ry HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET http://c4n4ry.example/v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /metrics?c4n4ry HTTP/1.1\r\nhost: a\r\nc4n4ry: c4n4ry\r\n\r\n",
    b"POST /health?c4n4ry HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nc4n4ry",
    b"C4N4RY /v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
    b"c4n4ry\r\n\r\n",
    b"GET / c4n4ry HTTP/1.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nc4n4ry\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nc4n4ry: \x00\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\nc4n4ry",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nc4n4ry\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\nupgrade: c4n4ry\r\nconnection: upgrade, c4n4ry\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\nexpect: c4n4ry\r\n\r\n",
    b"\x16\x03\x01c4n4ry",
)
# Nothing an engine does with a request brings it into the open.
FAULTS = (
    *(Fault.RESET, Fault.CLOSE, Fault.GARBAGE, Fault.ENDLESS_STATUS, Fault.NUL_HEADER, Fault.BAD_LENGTH, Fault.SWITCH),
    *(Fault.RST, Fault.FIN, Fault.IN_CHUNK, Fault.BAD_CHUNK, Fault.STALL, Fault.SHORT, Fault.STATUS, Fault.ERROR_EVENT),
)

OPEN_PATHS = ("/metrics", "/health", "/readyz", "/livez/engine", "/engine/status", "/openapi.json", "/docs", "/")


async def on_the_wire(port: int, data: bytes) -> None:
    """Send, read what comes for a moment, leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(0.3):
            await reader.read()
    except (TimeoutError, ConnectionError):
        pass
    writer.close()


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_no_output_has_a_canary_in_it(fake_engine: StartEngine, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    keys, engine_key = tmp_path / "keys", tmp_path / "engine-key"
    keys.write_text("sk-c4n4ry-client\n")
    engine_key.write_text("sk-c4n4ry-engine\n")
    engine = await fake_engine(api_key="sk-c4n4ry-engine", token_seconds=0.01)
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "MODEL_PATH": "/models/tiny-qwen2",
        "ENGINE_PORT": str(engine.port),
        "WINGS_PORT": str(port),
        "WINGS_HOST": "127.0.0.1",
        "SHARED_VOLUME_PATH": str(volume),
        "WINGS_API_KEYS_FILE": str(keys),
        "WINGS_ENGINE_API_KEY_FILE": str(engine_key),
        "WINGS_LOG_LEVEL": "debug",
        "WINGS_QUIET_SECONDS": "0",
        "WINGS_DRAIN_SECONDS": "1",
        "WINGS_PROBE_INTERVAL_SECONDS": "0.1",
        "WINGS_MAX_BODY_BYTES": "100000",
        "WINGS_FIRST_BYTE_TIMEOUT_SECONDS": "1",
        "WINGS_IDLE_TIMEOUT_SECONDS": "1",
        "PYTHONASYNCIODEBUG": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wings_proxy", "serve"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        base = f"http://127.0.0.1:{port}"
        body = {"messages": [{"role": "user", "content": "c4n4ry prompt"}], "stream": True, "user": "c4n4ry"}
        right = {"authorization": "Bearer sk-c4n4ry-client"}
        open_pages: dict[str, str] = {}
        async with aiohttp.ClientSession() as client:

            async def chat(url: str = CHAT, **more: object) -> tuple[int, str]:
                try:
                    async with client.post(base + url, json=body | more, headers=right) as answer:
                        return answer.status, await answer.text()
                except aiohttp.ClientError:
                    return 0, ""

            async with asyncio.timeout(60):
                while (await chat())[0] != 200:  # noqa: ASYNC110 - another process rings no bell
                    await asyncio.sleep(0.05)
            # The engine may tell the client its own words back, and nobody else.
            for raw in RAW:
                await on_the_wire(port, raw)
            with_key = (
                b"POST %s?c4n4ry HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-c4n4ry-client\r\n" % CHAT.encode()
            )
            half = json.dumps(body).encode()
            # Left while sending, waiting, and reading; too large, and not JSON.
            await on_the_wire(port, with_key + b"content-length: 99999\r\n\r\n" + half)
            await on_the_wire(port, with_key + b"content-length: %d\r\n\r\n" % len(half) + half)
            await on_the_wire(port, with_key + b"content-length: 6\r\n\r\nc4n4ry")
            assert (await chat(padding="c4n4ry" * 20_000))[0] == 413
            for fault in FAULTS:
                engine.settings.fault, engine.settings.fault_times = fault, 1
                await chat(CHAT + "?c4n4ry=1")
            engine.settings.fault = None
            for engine.settings.metrics in (Metrics.WEIRD, Metrics.ERROR, Metrics.BINARY, Metrics.OK):
                await client.get(base + "/metrics")
            # An engine that logs what it is asked, and dies of it.
            (volume / "engine.log").write_text(
                "INFO 11-22 18:48:55 [logger.py:43] Received request: 'c4n4ry'\nc4n4ry\n" * 9
            )
            status = {"run": RUN, "generation": "0" * 12, "asked": False, "started": 1, "changed": 1}
            for phase, code in (("running", None), ("exited", 1)):
                (volume / "engine.status").write_text(json.dumps({**status, "phase": phase, "code": code}) + "\n")
                await asyncio.sleep(1.5)
            for path in OPEN_PATHS:
                async with client.get(base + path) as answer:
                    open_pages[path] = str(answer.headers) + await answer.text()
            async with client.get(base + "/status.json", headers=right) as answer:
                open_pages["/status.json"] = await answer.text()
            async with client.get(base + "/v1/models", headers=right) as answer:
                open_pages["an error"] = str(answer.headers) + await answer.text()
    finally:
        process.terminate()
        out, err = await process.communicate()
    open_pages |= {"stdout": out.decode(), "stderr": err.decode()}
    for file in volume.iterdir():
        if file.is_file() and file.name != "engine.log":
            open_pages[file.name] = file.read_text()
    found = {where: line for where, page in open_pages.items() for line in page.splitlines() if CANARY in line.lower()}
    assert found == {}
    # It did see them.
    assert open_pages["stdout"].count('"message": "request"') > 10
    assert process.returncode == 0
