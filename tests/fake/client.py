"""A client that shows an answer as it was on the wire: header order, single chunks, how the connection ended."""

from __future__ import annotations

import asyncio
import enum
import json
import re
from dataclasses import dataclass
from typing import Any

# Status lines of interim answers (RFC 9110 §15.2); 101 ends HTTP.
_INTERIM = re.compile(rb"HTTP/1\.1 1(?!01)\d\d ")


class End(enum.StrEnum):
    """How an answer ended."""

    FRAMED = "framed"  # by its length or its last chunk
    FIN = "fin"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `chunks` is None unless chunked, and holds whole chunks only."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunks: tuple[bytes, ...] | None
    raw: bytes
    end: End

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> tuple[str, ...]:
        """The data of each server-sent event."""
        return tuple(event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event)


def split_chunks(data: bytes) -> tuple[tuple[bytes, ...], bool]:
    """Return the whole chunks `data` starts with, and whether the last one (of size 0) was among them."""
    chunks: list[bytes] = []
    while True:
        size, newline, rest = data.partition(b"\r\n")
        try:
            length = int(size, 16) if newline else -1
        except ValueError:
            length = -1
        if length == 0:
            return tuple(chunks), rest.startswith(b"\r\n")
        if length < 0 or len(rest) < length + 2:
            return tuple(chunks), False
        chunks.append(rest[:length])
        data = rest[length + 2 :]


def parse(raw: bytes, *, head_only: bool = False, end: End = End.FIN) -> Reply | None:
    """Return the answer in `raw`, behind any interim ones; None without a whole head. `end` is how the bytes ended."""
    head, blank, rest = raw.partition(b"\r\n\r\n")
    while _INTERIM.match(head) and blank:
        head, blank, rest = rest.partition(b"\r\n\r\n")
    if not blank:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    status = int(first.split(" ")[1])
    lower = {name.lower(): value for name, value in headers}
    if lower.get("transfer-encoding") == "chunked":
        chunks, whole = split_chunks(rest)
        return Reply(status, headers, b"".join(chunks), chunks, raw, End.FRAMED if whole else end)
    if head_only:
        return Reply(status, headers, b"", None, raw, End.FRAMED)
    length = int(lower.get("content-length", -1))
    whole = 0 <= length <= len(rest)
    return Reply(status, headers, rest[:length] if whole else rest, None, raw, End.FRAMED if whole else end)


async def exchange(port: int, data: bytes, *, seconds: float = 40.0) -> Reply:
    """Send a request and return the answer, read to the end of its framing or of the connection."""
    raw, end = b"", End.FIN
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(seconds):
            writer.write(data)
            while part := await reader.read(1 << 20):
                raw += part
                reply = parse(raw, head_only=data.startswith(b"HEAD "))
                if reply is not None and reply.end is End.FRAMED:
                    return reply
    except ConnectionResetError:
        end = End.RESET
    finally:
        writer.close()
    reply = parse(raw, end=end)
    if reply is None:
        return Reply(0, (), raw, None, raw, end)
    return reply


def request(
    path: str,
    body: object = None,
    *headers: tuple[str, str],
    method: str = "",
    version: str = "HTTP/1.1",
) -> bytes:
    """Return the bytes of a request; a body that is not bytes is sent as JSON."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    fields = [("host", "127.0.0.1:8000"), *headers]
    given = {name for name, _ in headers}
    if body is not None and not isinstance(body, bytes):
        fields.append(("content-type", "application/json"))
    if body is not None and "transfer-encoding" not in given:
        fields.append(("content-length", str(len(payload))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    method = method or ("GET" if body is None else "POST")
    return f"{method} {path} {version}\r\n{lines}\r\n".encode() + payload
