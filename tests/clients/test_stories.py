"""Each client against the whole sidecar and an engine that does what no real one does on demand."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import StartProgram
from tests.clients.program import (
    AI_SDK,
    KINDS,
    LANGCHAIN,
    LLAMA_INDEX,
    OPENAI,
    OPENAI_ASYNC,
    OPENAI_NODE,
    Kind,
    Program,
)
from tests.fake_engine import FakeEngine, Fault, Outcome, StartEngine
from tests.pod import Pod
from tests.sidecar import Sidecar, sidecar

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["uvloop"]), pytest.mark.timeout(120)]

# What the fake engine says to a question in Chinese.
FIVE_TOKENS = "第0个第1个第2个第3个第4个"
EIGHT_TOKENS = "第0个第1个第2个第3个第4个第5个第6个第7个"
TOOLS = {"tool_parser": True, "calls_tools": True}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def client(kind: Kind, client_program: StartProgram) -> Program:
    return client_program(kind)


def url(running: Sidecar) -> str:
    return f"http://127.0.0.1:{running.port}"


async def ready(running: Sidecar) -> str:
    """Wait until it is ready; return its address."""
    await running.health(lambda body: body["state"] == "ready")
    return url(running)


async def test_the_version_is_the_one_that_the_table_names(kind: Kind, client: Program) -> None:
    told = await client.tell("about")
    assert {name: told[name] for name in kind.packages} == kind.pins


@pytest.mark.parametrize("kind", [OPENAI, OPENAI_ASYNC, OPENAI_NODE], ids=lambda kind: kind.name)
async def test_the_models_are_listed(client: Program, fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine(served_names=("千问", "qwen"))
    async with sidecar(tmp_path, engine.port) as running:
        assert await client.tell("models", url=await ready(running)) == {"models": ["千问", "qwen"]}


@pytest.mark.parametrize("story", ["whole", "streamed"])
async def test_a_chat_in_chinese_comes_intact_and_with_its_usage(
    client: Program, story: str, fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=8)
    async with sidecar(tmp_path, engine.port) as running:
        told = await client.tell(story, url=await ready(running))
    assert told == {"text": EIGHT_TOKENS, "finish": "length", "prompt_tokens": 10, "completion_tokens": 8}


@pytest.mark.parametrize("story", ["tool", "tool_streamed"])
async def test_a_tool_is_called(
    kind: Kind, client: Program, story: str, fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=12, **TOOLS)
    async with sidecar(tmp_path, engine.port) as running:
        told = await client.tell(story, url=await ready(running))
    finish = "tool-calls" if kind is AI_SDK else "tool_calls"
    assert told == {"name": "get_weather", "arguments": {"city": "Paris"}, "finish": finish}


# -- errors, by class ------------------------------------------------------------------------------------------------


def error_class(kind: Kind, openai: str) -> str:
    """Return what a client calls the error that openai-python calls so: some have one class for all."""
    if kind is AI_SDK:
        return "APICallError"
    if kind is OPENAI_NODE and openai == "APIStatusError":
        return "APIError"
    return openai


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A request that is refused: how the client asks, what is set up, what it must be told."""

    name: str
    status: int
    openai: str
    message: str
    order: dict[str, Any] = dataclasses.field(default_factory=dict)
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    environ: dict[str, str] = dataclasses.field(default_factory=dict)
    code: str = ""


REFUSED = (
    Refused("unknown model", 404, "NotFoundError", "The model `nobody` does not exist", {"model": "nobody"}),
    Refused(
        "refused by the engine", 400, "BadRequestError", "cannot be greater than max_model_len", {"max_tokens": 99_999}
    ),
    Refused(
        "wrong key",
        401,
        "AuthenticationError",
        "the API key is not valid",
        {"key": "sk-wrong"},
        environ={"WINGS_API_KEYS_FILE": "keys"},
        code="unauthorized",
    ),
    # More than the buffers of both sockets hold: it is refused while the client is still sending.
    Refused(
        "body too large",
        413,
        "APIStatusError",
        "the request's body is longer than 65536 bytes",
        {"content": "长" * 4_000_000},
        environ={"WINGS_MAX_BODY_BYTES": "64KiB"},
        code="request_too_large",
    ),
    Refused(
        "still loading",
        503,
        "InternalServerError",
        "The engine is not ready",
        engine={"boot_seconds": float("inf")},
        code="engine_not_ready",
    ),
    Refused(
        "engine died before an answer",
        502,
        "InternalServerError",
        "the engine failed",
        engine={"fault": Fault.CLOSE},
        code="upstream_error",
    ),
)


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
async def test_a_refusal_has_its_class_its_status_and_its_words(
    kind: Kind, client: Program, refused: Refused, fake_engine: StartEngine, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("sk-right\n")
    environ = {name: value.replace("keys", str(tmp_path / "keys")) for name, value in refused.environ.items()}
    engine = await fake_engine(**refused.engine)
    async with sidecar(tmp_path, engine.port, **environ) as running:
        if "boot_seconds" not in refused.engine:
            await ready(running)
        told = await client.tell("whole", url=url(running), **refused.order)
    assert error_class(kind, refused.openai) in told["classes"]
    assert told["status"] == refused.status
    assert refused.message in told["message"]
    if refused.code and kind is not AI_SDK:
        assert told["code"] == refused.code


async def test_the_right_key_is_let_in_and_goes_no_further(
    client: Program, fake_engine: StartEngine, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("sk-right\n")
    engine = await fake_engine(tokens=8)
    async with sidecar(tmp_path, engine.port, WINGS_API_KEYS_FILE=str(tmp_path / "keys")) as running:
        told = await client.tell("whole", url=await ready(running), key="sk-right")
    assert told["text"] == EIGHT_TOKENS
    assert chats(engine)[0].header("authorization") is None


def chats(engine: FakeEngine) -> list[Any]:
    return [request for request in engine.requests if request.path == "/v1/chat/completions"]


# -- streams that are cut --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.FIN, Fault.RST, Fault.BAD_CHUNK])
async def test_an_engine_that_dies_between_two_events_is_an_error_that_says_so(
    kind: Kind, client: Program, fault: Fault, fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=fault, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        told = await client.tell("cut", url=await ready(running))
    assert told["text"] == FIVE_TOKENS
    if kind is AI_SDK:
        # The event is a part of its stream, and told to `onError`; the loop is left by the connection's end.
        assert (told["raised"], told["cause"]) == ("APICallError", "terminated")
        assert told["seen_in"] == ["loop", "part", "call_back"]
        assert "the engine failed" in told["part"]
    else:
        assert told["raised"] == "APIError"
        assert "the engine failed" in told["message"]
        assert told["code"] == "upstream_error"


async def test_an_engine_that_dies_inside_an_event_is_a_broken_connection(
    kind: Kind, client: Program, fake_engine: StartEngine, tmp_path: Path
) -> None:
    # Half an event cannot be taken back: ended by a blank line it would be JSON that does not parse.
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=Fault.IN_CHUNK, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        told = await client.tell("cut", url=await ready(running))
    assert told["text"] == FIVE_TOKENS
    assert {
        OPENAI: "APIConnectionError",
        OPENAI_ASYNC: "APIConnectionError",
        OPENAI_NODE: "TypeError",  # of `fetch`: "terminated"
        AI_SDK: "APICallError",
        LANGCHAIN: "APIConnectionError",
        LLAMA_INDEX: "RemoteProtocolError",  # of httpx
    }[kind] in told["classes"]


async def test_without_the_broken_end_one_client_would_end_politely(
    client_program: StartProgram, fake_engine: StartEngine, tmp_path: Path
) -> None:
    """vLLM itself ends a stream it cannot go on with by an error event and `[DONE]`, and that passes unchanged.

    The text stream of the AI SDK then just ends; what makes it throw after an error of ours is the missing last chunk.
    """
    client = client_program(AI_SDK)
    engine = await fake_engine(tokens=24, token_seconds=0.01, fault=Fault.ERROR_EVENT, fault_after=5)
    async with sidecar(tmp_path, engine.port) as running:
        of_the_engine = await client.tell("cut", url=await ready(running), read="text")
        engine.settings.fault = Fault.FIN
        of_ours = await client.tell("cut", url=url(running), read="text")
    assert (of_the_engine["text"], of_the_engine["seen_in"]) == (FIVE_TOKENS, ["call_back"])
    assert of_the_engine["finish"] == "error"
    assert (of_ours["text"], of_ours["seen_in"]) == (FIVE_TOKENS, ["loop", "call_back"])


# -- clients that leave ----------------------------------------------------------------------------------------------


async def test_a_client_that_cancels_a_stream_ends_the_engines_work(
    client: Program, fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=100_000, token_seconds=0.01)
    async with sidecar(tmp_path, engine.port) as running:
        assert await client.tell("leave", url=await ready(running)) == {"left": True}
        # The program is still there: it is the connection that the client has closed.
        await engine.until(lambda: chats(engine)[0].outcome is Outcome.LEFT, seconds=30)


async def test_a_client_that_waits_no_longer_ends_the_engines_work(
    kind: Kind, client: Program, fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(first_token_seconds=float("inf"))
    async with sidecar(tmp_path, engine.port) as running:
        told = await client.tell("give_up", url=await ready(running))
        await engine.until(lambda: chats(engine)[0].outcome is Outcome.LEFT, seconds=30)
    assert {
        OPENAI: "APITimeoutError",
        OPENAI_ASYNC: "TimeoutError",
        OPENAI_NODE: "APIConnectionTimeoutError",
        AI_SDK: "DOMException",
        LANGCHAIN: "APITimeoutError",
        LLAMA_INDEX: "APITimeoutError",
    }[kind] in told["classes"]


async def test_llama_index_left_in_a_loop_keeps_its_connection_until_the_write_stall(
    client_program: StartProgram, fake_engine: StartEngine, tmp_path: Path
) -> None:
    """Its synchronous stream, closed or broken off, holds the answer until Python collects it, and reads no further.

    What frees the engine then is our own limit on clients that do not read.
    """
    client = client_program(LLAMA_INDEX)
    engine = await fake_engine(tokens=10_000_000)
    async with sidecar(tmp_path, engine.port, WINGS_WRITE_STALL_SECONDS="1") as running:
        assert await client.tell("leave_unnoticed", url=await ready(running)) == {"left": True}
        await engine.until(lambda: chats(engine)[0].outcome is Outcome.LEFT, seconds=60)
        _, metrics = await running.get("/metrics")
    assert 'wings_client_aborts_total{phase="stall"} 1.0' in metrics


# -- the library's own retries ---------------------------------------------------------------------------------------


async def test_a_client_comes_again_when_it_was_told_to(client_program: StartProgram) -> None:
    """Every client at once, before the engine's container has begun; the gaps are read off the sidecar's own log.

    A request's line is written when it ends: from its time and duration follows when it came. A client that waits
    by rules of its own comes earlier (two seconds at most, or four), and a busy machine makes it come later only.
    """
    programs = {kind.program: client_program(kind) for kind in KINDS}
    async with Pod() as pod, asyncio.TaskGroup() as group:
        pod.sidecar.start()
        await pod.until_state("starting")
        _, refusal = await pod.get("/v1/models")
        assert b"engine_not_ready" in refusal
        asked = {
            name: group.create_task(program.tell("patient", url=pod.url, request_id=name), name=name)
            for name, program in programs.items()
        }
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "--retry", "5", "-H", "X-Request-Id: curl", f"{pod.url}/v1/models"),
            stdout=asyncio.subprocess.PIPE,
        )
        names = {*programs, "curl"}
        await pod.sidecar.until(lambda: names <= {line.get("request_id") for line in pod.log()}, 60)
        pod.engine.start()
        told = {name: await task for name, task in asked.items()}
        listed, _ = await curl.communicate()
        # The log is written beside the event loop, a moment later.
        await pod.sidecar.until(
            lambda: names <= {line["request_id"] for line in pod.log() if line.get("status") == 200}, 20
        )
        log = pod.log()
    assert {name: answer.get("text", answer)[:6] for name, answer in told.items()} == dict.fromkeys(
        programs, "第0个第1个"
    )
    assert b'"/models/tiny-qwen2"' in listed
    for name in sorted(names):
        lines = [line for line in log if line.get("request_id") == name]
        statuses = [line["status"] for line in lines]
        assert statuses[0] == 503
        assert statuses[-1] == 200
        came = [datetime.fromisoformat(line["time"]).timestamp() - line["duration_seconds"] for line in lines]
        gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
        print(name, statuses, [f"{gap:.2f} s" for gap in gaps])
        # The log has milliseconds, and Node.js may be one early.
        assert gaps[0] >= 5 - 0.01


# -- what only some can show -----------------------------------------------------------------------------------------


async def test_the_answer_under_the_answer(
    client_program: StartProgram, fake_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await fake_engine(tokens=8)
    async with sidecar(tmp_path, engine.port) as running:
        told = await client_program(OPENAI).tell("raw", url=await ready(running), request_id="raw-1")
    assert (told["status"], told["text"], told["last_line"]) == (200, EIGHT_TOKENS, "data: [DONE]")
    assert told["headers"]["x-request-id"] == "raw-1"
    assert told["headers"]["server"] == "uvicorn"
    assert "x-wings-origin" not in told["headers"]
    assert told["streamed_headers"]["content-type"] == "text/event-stream; charset=utf-8"
    assert told["streamed_headers"]["cache-control"] == "no-cache"


async def test_the_older_endpoint(client_program: StartProgram, fake_engine: StartEngine, tmp_path: Path) -> None:
    engine = await fake_engine()
    async with sidecar(tmp_path, engine.port) as running:
        told = await client_program(OPENAI).tell("completion", url=await ready(running))
    assert told == {"text": "0 1 2 3 ", "streamed": "0 1 2 3 "}
