"""One question, one streamed answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from wings_proxy.local.ask import Answer, EventStream, ask, first_model


def chunk(content: str) -> bytes:
    return f'data: {{"choices": [{{"delta": {{"content": "{content}"}}}}]}}\n\n'.encode()


ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Engine:
    """Answers every chat with the given pieces; keeps the last question's body."""

    def __init__(self, *pieces: bytes, status: int = 200, content_type: str = "text/event-stream") -> None:
        self.pieces: Sequence[bytes] = pieces
        self.status, self.content_type = status, content_type
        self.asked: dict[str, object] = {}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked = await request.json()
        response = web.StreamResponse(status=self.status, headers={"Content-Type": self.content_type})
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
        return response


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def answer_of(engine: Engine, session: aiohttp.ClientSession) -> tuple[Answer, list[str]]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.chat)
    written: list[str] = []
    async with TestServer(app) as server:
        answer = await ask(session, str(server.make_url("")).rstrip("/"), "m", "Hello?", written.append)
    return answer, written


async def test_an_answer_is_passed_on_piece_by_piece(session: aiohttp.ClientSession) -> None:
    engine = Engine(ROLE, chunk("Hel"), chunk("lo"), DONE)

    answer, written = await answer_of(engine, session)

    assert written == ["Hel", "lo"]
    assert (answer.text, answer.tokens, answer.problem) == ("Hello", 2, None)
    assert answer.first_token_seconds is not None
    assert 0 < answer.first_token_seconds <= answer.seconds
    assert engine.asked["messages"] == [{"role": "user", "content": "Hello?"}]
    assert (engine.asked["model"], engine.asked["stream"]) == ("m", True)


async def test_chinese_cut_anywhere_arrives_whole(session: aiohttp.ClientSession) -> None:
    wire = chunk("你好") + DONE

    answer, _ = await answer_of(Engine(*(wire[i : i + 1] for i in range(len(wire)))), session)

    assert (answer.text, answer.problem) == ("你好", None)


async def test_a_stream_without_done_is_no_complete_answer(session: aiohttp.ClientSession) -> None:
    answer, _ = await answer_of(Engine(chunk("Hel")), session)

    assert answer.text == "Hel"
    assert answer.problem == "the stream ended without [DONE]"


async def test_an_error_in_the_stream_is_the_problem(session: aiohttp.ClientSession) -> None:
    answer, _ = await answer_of(Engine(chunk("Hel"), b'data: {"error": {"message": "engine died"}}\n\n', DONE), session)

    assert answer.problem == "engine died"


async def test_an_error_instead_of_a_stream_is_the_problem(session: aiohttp.ClientSession) -> None:
    engine = Engine(b'{"error": {"message": "not ready"}}', status=503, content_type="application/json")

    answer, _ = await answer_of(engine, session)

    assert answer.problem == "status 503: not ready"


async def test_an_answer_that_is_not_a_stream_is_the_problem(session: aiohttp.ClientSession) -> None:
    answer, _ = await answer_of(Engine(b"<html>hi", content_type="text/html"), session)

    assert answer.problem == "status 200: <html>hi"


async def test_nobody_there_is_the_problem(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    answer = await ask(session, f"http://127.0.0.1:{unused_tcp_port}", "m", "Hello?", lambda _: None)

    assert "Cannot connect" in str(answer.problem)


async def test_garbage_in_an_event_is_the_problem(session: aiohttp.ClientSession) -> None:
    answer, _ = await answer_of(Engine(b"data: {oops\n\n", DONE), session)

    assert answer.problem == "an event is not JSON: '{oops'"


async def test_the_first_model_listed(session: aiohttp.ClientSession) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "smollm"}, {"id": "other"}]})

    async def none(request: web.Request) -> web.Response:
        return web.json_response({"error": "unauthorized"}, status=401)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_get("/denied/v1/models", none)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        assert await first_model(session, url) == "smollm"
        assert await first_model(session, f"{url}/denied") == ""


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\r\rdata: b\r\r\n", ["a", "b"]),
        (b"data:a\ndata: b\n\n", ["a\nb"]),
        (b": comment\nevent: x\nid: 1\ndata: a\n\n", ["a"]),
        (b"data: unfinished\n", []),
        (b"\n\n\n", []),
        (b"data:  two spaces\n\n", [" two spaces"]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_events_are_found_however_the_bytes_are_cut(wire: bytes, events: list[str], size: int) -> None:
    stream = EventStream()

    assert [data for i in range(0, len(wire), size) for data in stream.feed(wire[i : i + size])] == events


def test_what_is_said_of_an_answer() -> None:
    assert str(Answer("Hi there", 2, 0.25, 0.5, None)) == "first token after 0.25 s, 2 events with text in 0.50 s"
    assert str(Answer("", 0, None, 0.5, None)) == "an empty answer after 0.50 s"
    assert str(Answer("Hi", 1, 0.25, 0.5, "engine died")) == "no complete answer: engine died"
