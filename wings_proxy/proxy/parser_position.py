"""Where the parser of one connection stands. It does not say so itself: told from the lengths it found."""

from __future__ import annotations

from typing import Final

from aiohttp.http import RawRequestMessage

_KEPT: Final = "websocket"


class ParserPosition:
    """Between two requests, inside a body of so many bytes, or unknown: once lost it stays so."""

    __slots__ = ("_owed",)

    def __init__(self) -> None:
        self._owed: int | None = 0

    @property
    def between_requests(self) -> bool:
        """Whether the next byte is the first one of a request."""
        return self._owed == 0

    @property
    def inside_body(self) -> bool:
        """Whether more of a body is to come."""
        return bool(self._owed)

    def inside_body_for(self, size: int) -> bool:
        """Whether the next so many bytes belong to a body, all of them."""
        return self._owed is not None and 0 < size <= self._owed

    @property
    def known(self) -> bool:
        """Whether it is known at all; not after chunks, pipelining, or a head of a kind that nobody sends."""
        return self._owed is not None

    def lose(self) -> None:
        """Know nothing any more."""
        self._owed = None

    def body(self, size: int, *, began: bool) -> None:
        """Note that so many bytes were parsed inside a body; *began*: they began another request."""
        assert self._owed is not None
        left = self._owed - size
        self._owed = left if left >= 0 and not began else None

    def head(self, data: bytes, end: int, message: RawRequestMessage) -> None:
        """Note that *data*, between two requests, was parsed as one *message*; its first blank line ends at *end*."""
        self._owed = None
        # A line feed of its own is an end of line to lenient readers.
        head = data[:end]
        begins = head.startswith(message.method.encode() + b" ") and head.count(b"\n") == head.count(b"\r\n")
        # An offer of another protocol that nobody takes up is a request like any other; of one that aiohttp knows, it
        # keeps what follows until it has declined.
        kept = message.upgrade and (message.method == "CONNECT" or message.headers.get("Upgrade", "").lower() == _KEPT)
        if begins and not (message.chunked or kept):
            left = end + int(message.headers.get("Content-Length", "0")) - len(data)
            if left >= 0:
                self._owed = left
