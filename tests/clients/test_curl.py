"""curl against the whole sidecar: what the protocol itself has, and no library in between."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import FakeEngine, Fault, Outcome, Request, StartEngine
from tests.sidecar import Sidecar, sidecar

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["uvloop"])]

MODEL = "/models/tiny-qwen2"
FIVE_TOKENS = "第0个第1个第2个第3个第4个"
EIGHT_TOKENS = "第0个第1个第2个第3个第4个第5个第6个第7个"
# From curl's manual, "EXIT CODES".
PARTIAL_FILE, TIMED_OUT, HTTP2_ERROR, RECEIVE_ERROR = 18, 28, 16, 56
# After the body, on a line of its own; the fields are curl's (`--write-out`).
_FACTS = ["http_code", "http_version", "num_connects", "size_upload", "size_download", "content_type"]
_WRITE_OUT = "\n{" + ", ".join(f'"{name}": "%{{{name}}}"' for name in _FACTS) + "}"


@pytest.fixture(autouse=True)
def installed() -> None:
    if shutil.which("curl") is None:
        assert not os.environ.get("CI"), "CI must have curl: apt install curl"
        pytest.skip("needs curl: apt install curl")


@dataclass(frozen=True, slots=True)
class Told:
    """What curl printed, and how it ended."""

    exit_code: int
    body: bytes
    facts: dict[str, str]
    said: str

    @property
    def status(self) -> int:
        return int(self.facts["http_code"])

    @property
    def text(self) -> str:
        """The text of a streamed chat."""
        events = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in json.loads(event).get("choices", [])]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


async def curl(running: Sidecar, path: str, *arguments: str, body: bytes | None = None) -> Told:
    """Run curl; `body` is its standard input."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--disable", "--silent", "--show-error", "--max-time", "40", "--write-out", _WRITE_OUT),
        *arguments,
        f"http://127.0.0.1:{running.port}{path}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, said = await process.communicate(body)
    answer, _, facts = out.rpartition(b"\n")
    assert process.returncode is not None
    return Told(process.returncode, answer, json.loads(facts), said.decode())


def chat(*, stream: bool, **more: Any) -> tuple[str, ...]:
    """Return the arguments of a chat in Chinese."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "你好"}], "stream": stream, **more}
    return ("--json", json.dumps(asked, ensure_ascii=False))


CHAT = "/v1/chat/completions"


def sent(engine: FakeEngine) -> Request:
    """Return the last request that was no probe."""
    return [request for request in engine.requests if request.method == "POST"][-1]


async def ready(running: Sidecar) -> Sidecar:
    await running.health(lambda body: body["state"] == "ready")
    return running


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
@pytest.mark.parametrize("coded", [(), ("--compressed",)], ids=["plain", "compressed"])
async def test_a_chat_whole_and_streamed(
    version: str, coded: tuple[str, ...], fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=8)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        whole = await curl(running, CHAT, version, *coded, *chat(stream=False))
        streamed = await curl(running, CHAT, version, *coded, "--no-buffer", *chat(stream=True))
    assert (whole.exit_code, whole.status) == (0, 200)
    assert json.loads(whole.body)["choices"][0]["message"]["content"] == EIGHT_TOKENS
    assert (streamed.exit_code, streamed.status) == (0, 200)
    assert streamed.text == EIGHT_TOKENS
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert streamed.facts["content_type"] == "text/event-stream; charset=utf-8"


async def test_what_the_engine_compressed_arrives_compressed(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=8, fault=Fault.GZIP)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        decoded = await curl(running, CHAT, "--compressed", "--no-buffer", *chat(stream=True))
        as_it_came = await curl(running, CHAT, *chat(stream=False))
    assert decoded.text == EIGHT_TOKENS
    assert json.loads(gzip.decompress(as_it_came.body))["choices"][0]["message"]["content"] == EIGHT_TOKENS
    assert sent(engine).header("accept-encoding") is None


@pytest.mark.parametrize(
    "how",
    [
        ("--data-binary", "@-"),
        ("--data-binary", "@-", "-H", "Expect:"),
        ("--data-binary", "@-", "-H", "Expect: 100-continue"),
        ("--data-binary", "@-", "-H", "Transfer-Encoding: chunked"),
        ("--data-binary", "@-", "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue"),
        ("--upload-file", "-", "-X", "POST"),
        ("--data-binary", "@-", "--http1.0"),
    ],
    ids=[
        "as curl does",
        "no Expect",
        "Expect",
        "chunked",
        "chunked, Expect",
        "upload, length unknown",
        "HTTP/1.0",
    ],
)
async def test_five_megabytes_arrive_whole(how: tuple[str, ...], fake_engine: StartEngine, tmp_path: Path) -> None:
    content = "长" * 1_700_000
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 8}).encode()
    engine = await fake_engine(max_model_len=10_000_000)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(running, CHAT, "-H", "Content-Type: application/json", *how, body=body)
    assert (told.exit_code, told.status) == (0, 200), told
    assert sent(engine).body_sha256 == hashlib.sha256(body).hexdigest()
    assert json.loads(told.body)["usage"]["prompt_tokens"] == 1_700_000


async def test_a_gzipped_upload_is_not_unpacked(fake_engine: StartEngine, tmp_path: Path) -> None:
    # vLLM does not unpack it either, and says so: what counts is that it saw what the client sent.
    body = gzip.compress(b'{"model": "m"}', mtime=0)
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(
            running,
            CHAT,
            *("-H", "Content-Type: application/json", "-H", "Content-Encoding: gzip", "--data-binary", "@-"),
            body=body,
        )
    assert told.status == 400
    assert sent(engine).body == body
    assert sent(engine).header("content-encoding") == "gzip"


async def test_a_file_in_a_form_goes_through(fake_engine: StartEngine, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(bytes(range(256)) * 1000)
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        await curl(running, "/v1/audio/transcriptions", "-F", f"file=@{tmp_path}/speech.wav", "-F", "model=whisper")
    request = sent(engine)
    assert request.path == "/v1/audio/transcriptions"
    assert (request.header("content-type") or "").startswith("multipart/form-data; boundary=")
    assert bytes(range(256)) * 1000 in request.body


async def test_too_large_is_said_before_it_is_sent(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port, WINGS_MAX_BODY_BYTES="64KiB") as running:
        await ready(running)
        waiting = await curl(running, CHAT, "--data-binary", "@-", "-H", "Expect: 100-continue", body=b"x" * 5_000_000)
        sending = await curl(running, CHAT, "--data-binary", "@-", "-H", "Expect:", body=b"x" * 5_000_000)
        growing = await curl(
            running, CHAT, "--data-binary", "@-", "-H", "Transfer-Encoding: chunked", body=b"x" * 5_000_000
        )
    for told in (waiting, sending, growing):
        assert told.status == 413, told
        assert json.loads(told.body)["error"]["code"] == "request_too_large"
    assert waiting.facts["size_upload"] == "0"


async def test_one_connection_for_two_requests(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(running, "/v1/models", f"http://127.0.0.1:{running.port}/v1/models")
    assert (told.exit_code, told.status, told.facts["num_connects"]) == (0, 200, "0")


async def test_an_offer_of_http2_is_not_taken(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=8)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        offered = await curl(running, "/v1/models", "--http2")
        streamed = await curl(running, CHAT, "--http2", *chat(stream=True))
        insisted = await curl(running, "/v1/models", "--http2-prior-knowledge")
    assert (offered.status, offered.facts["http_version"]) == (200, "1.1")
    assert (streamed.status, streamed.text) == (200, EIGHT_TOKENS)
    assert insisted.exit_code != 0
    assert insisted.exit_code != TIMED_OUT


@pytest.mark.parametrize("fault", [Fault.FIN, Fault.RST, Fault.IN_CHUNK])
async def test_a_cut_stream_is_a_partial_file(fault: Fault, fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=fault, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(running, CHAT, "--no-buffer", *chat(stream=True))
    assert told.exit_code == PARTIAL_FILE
    assert '"content":"第4个"' in told.body.decode()


async def test_a_whole_answer_that_is_cut_is_no_answer(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=24, fault=Fault.RST)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(running, CHAT, *chat(stream=False))
    assert told.exit_code in (PARTIAL_FILE, RECEIVE_ERROR)


async def test_http_1_0_is_told_of_a_cut_stream_by_the_event_alone(fake_engine: StartEngine, tmp_path: Path) -> None:
    """A body that ends with its connection has no other end: only what stands in it can tell."""
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=Fault.FIN, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(running, CHAT, "--http1.0", "--no-buffer", *chat(stream=True))
        engine.settings.fault = Fault.IN_CHUNK
        inside = await curl(running, CHAT, "--http1.0", "--no-buffer", *chat(stream=True))
    assert told.exit_code == 0
    assert told.text == FIVE_TOKENS
    last = told.body.decode().rstrip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"
    # Inside an event not even that: the connection is reset.
    assert inside.exit_code == RECEIVE_ERROR


async def test_a_client_that_goes_ends_the_engines_work(fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(tokens=100_000, token_seconds=0.01)
    async with sidecar(tmp_path, engine.port) as running:
        await ready(running)
        told = await curl(running, CHAT, "--max-time", "2", "--no-buffer", *chat(stream=True))
        await engine.until(lambda: sent(engine).outcome is Outcome.LEFT, seconds=20)
    assert told.exit_code == TIMED_OUT


async def test_keys_and_the_state_are_told_by_status_and_body(fake_engine: StartEngine, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-right\n")
    engine = await fake_engine(boot_seconds=float("inf"))
    async with sidecar(tmp_path, engine.port, WINGS_API_KEYS_FILE=str(tmp_path / "keys")) as running:
        without = await curl(running, CHAT, *chat(stream=True))
        loading = await curl(running, CHAT, "-H", "Authorization: Bearer sk-right", *chat(stream=True))
        failed = await curl(running, CHAT, "--fail-with-body", "-H", "x-api-key: sk-right", *chat(stream=True))
    assert (without.status, json.loads(without.body)["error"]["code"]) == (401, "unauthorized")
    assert (loading.status, json.loads(loading.body)["error"]["code"]) == (503, "engine_not_ready")
    assert failed.exit_code == 22  # curl's "HTTP page not retrieved"
