"""What the tests of a client's connection share: requests, an engine that echoes, and what the parser saw."""

from __future__ import annotations

import pytest

from tests.wire import OWN, ROUTE, Client, EngineSide
from wings_proxy.proxy.known_heads import Split
from wings_proxy.server.client_connection import ClientConnection


async def echo(engine: EngineSide) -> None:
    while True:
        request = await engine.request()
        await engine.answer(request.body)


async def silent(engine: EngineSide) -> None:
    """Take requests, and answer none."""
    while True:
        await engine.request()


def post(body: bytes, fields: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: p\r\n%bContent-Length: %d\r\n\r\n%b" % (ROUTE.encode(), fields, len(body), body)


def own(target: str = OWN) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: p\r\n\r\n" % target.encode()


def in_chunks(body: bytes, size: int = 1, fields: bytes = b"") -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"POST %b HTTP/1.1\r\nHost: p\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (
        ROUTE.encode(),
        fields,
        chunks,
    )


class Parsed:
    """What went through the parser."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces: list[bytes] = []
        self.connection: ClientConnection | None = None
        parse = ClientConnection._parse

        def noted(connection: ClientConnection, split: Split | None, data: bytes) -> None:
            if data:
                self.pieces.append(data)
            self.connection = connection
            parse(connection, split, data)

        monkeypatch.setattr(ClientConnection, "_parse", noted)

    async def learn(self, client: Client, fields: bytes = b"") -> ClientConnection:
        """Have the head of `post` known, and return the proxy's side of the connection."""
        for _ in range(2):
            await client.send(post(b"1", fields))
            assert (await client.answer()).body == b"1"
        assert self.connection is not None
        self.pieces.clear()
        return self.connection
