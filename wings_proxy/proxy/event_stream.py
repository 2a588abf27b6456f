"""Where the events of a server-sent event stream end (WHATWG HTML, "server-sent events").

An event ends with a blank line. The lines end with LF or with CR LF; which of them is known from a stream's first line.
(Nobody writes the third kind, CR alone; its events are not counted.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

LF_END: Final = b"\n\n"
CRLF_END: Final = b"\r\n\r\n"
DONE: Final = (b"data: [DONE]\n\n", b"data: [DONE]\n\n\r\n", b"data: [DONE]\r\n\r\n", b"data: [DONE]\r\n\r\n\r\n")
"""What bytes end with after OpenAI's last event, bare and as a chunk; openai-python leaves on it."""
ENDS: Final = {False: (LF_END, CRLF_END, b"\r\r"), True: (b"\n\n\r\n", b"\r\n\r\n\r\n", b"\r\r\r\n")}
"""What bytes end with after a whole event: False, bare; True, inside a chunk's framing."""

_CR: Final = 0x0D


class EventCounter:
    """Counts the ends of events, however the network cut them."""

    __slots__ = ("_end", "_tail")

    def __init__(self) -> None:
        self._end = b""
        self._tail = b""

    @property
    def chunk_end(self) -> bytes:
        """What a chunk ends with that ends with an event; empty before the first line has ended."""
        return self._end and self._end + b"\r\n"

    @property
    def between_events(self) -> bool:
        """Whether the newest byte was the last one of an event."""
        return bool(self._end) and not self._tail

    def count(self, body: bytes) -> int:
        """Return how many events end in *body*, the next bytes of the stream."""
        text = self._tail + body
        if not self._end:
            line_feed = text.find(b"\n")
            if line_feed < 0:
                self._tail = text[-1:]  # perhaps a CR
                return 0
            self._end = CRLF_END if line_feed and text[line_feed - 1] == _CR else LF_END
        *ended, rest = text.split(self._end)
        self._tail = rest[1 - len(self._end) :]
        return len(ended)

    def count_chunks(self, wire: bytes) -> int:
        """Return how many events end in whole chunks of which each ends with an event, when `between_events`."""
        return wire.count(self._end)


def chunk_of_one_event(wire: bytes) -> int:
    """Return how many bytes of body *wire* has if it is one chunk that is one event of one line; else 0.

    So comes nearly every event of an engine, and finding that out is cheaper than looking at chunks. *wire* begins
    where a chunk and an event do.
    """
    size, line = len(wire), size_line(len(wire))
    at = len(line)
    if wire.startswith(line) and wire.endswith(b"\n\n\r\n") and wire.find(b"\n", at) == size - 4:
        return size - at - 2
    return 0


@lru_cache(maxsize=4096)
def size_line(length: int) -> bytes:
    """Return what *length* bytes begin with if they are one chunk of at most 4095 bytes, as everybody writes it.

    A line feed, with which no chunk begins, if none has this length: 15 bytes make a chunk of 20, 16 one of 22.
    """
    for digits in (1, 2, 3):
        line = b"%x\r\n" % max(length - digits - 4, 0)
        if len(line) == digits + 2 and line[0] != ord("0"):
            return line
    return b"\n"
