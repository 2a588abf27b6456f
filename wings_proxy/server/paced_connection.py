"""A client's connection whose parser is fed by us: how much at once, when, what it is told, and what it may not read.

Of what may be chunks, and costs the parser by the chunk, only a little is parsed in one turn of the loop. What this
rests on, for aiohttp 3.14, each point held by a test:

- a body with too much that nobody took, or too many chunks, calls `pause_reading`; each piece that is taken, and its
  end, call `resume_reading`;
- the parser counts a request at its end, and `message_consumed` takes one off the count, never below none. At 32 it
  stops, and keeps what follows;
- the last trailer of a request becomes a field of the next one.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.web_protocol import _ErrInfo

from wings_proxy.proxy.upload_pace import UploadPace

SLICE_BYTES: Final = 8 * 1024
"""What is parsed at once of what may be chunks: of one byte each, that many cost some milliseconds."""

NotHttp = _ErrInfo
"""What stands in the place of a request that the parser could not read."""

_QUEUE: Final = 4
"""How many requests wait for their turns before no more is read: their heads are of up to 64 KiB, and aiohttp would
keep 32 for each client."""

_STOPPED: Final = 31
"""With so many, and one that is being answered, the parser may have stopped inside a piece, and have kept its rest."""

_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
"""The last bytes of a body in chunks without trailers."""

_CUTS: Final = 8
"""How often a slice is cut: a body may consist of what looks like its end."""


class PacedConnection(web.RequestHandler):
    """Has aiohttp's parser take what came in time, all of it in the end, and no more than somebody reads."""

    __slots__ = ("_chunks", "_late_body", "_pace", "_slicing", "_tail", "_unparsed")

    def __init__(self, manager: web.Server, *, pace: UploadPace, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._max_msg_queue_size, self._msg_queue_resume_size = _QUEUE, _QUEUE // 2
        self._pace = pace
        self._unparsed = b""
        """What came and is parsed in slices; nothing more is read before all of it is."""
        self._slicing = False
        """Whether the next slice has been asked for, or is being parsed."""
        self._late_body: StreamReader | None = None
        """The body of a request that was taken before its end."""
        self._chunks: StreamReader | None = None
        """The body, in chunks, of the request that was parsed last, if it has not ended."""
        self._tail = b""
        """The last bytes that were parsed."""

    # ---- slices

    def parse_slices(self, data: bytes) -> None:
        """Have `parse_slice` take *data*, no more of it in one turn of the loop than is due to each."""
        began = not self._unparsed
        self._unparsed += data
        if began:
            self._pause_transport_reading()
            self._ask()

    def parse_slice(self, data: bytes) -> None:
        """Parse some of what came."""
        raise NotImplementedError

    def is_one_piece(self, data: bytes) -> bool:
        """Whether the parser may have all of it at once."""
        return len(data) <= SLICE_BYTES and self._cut(data) == len(data)

    def _cut(self, data: bytes) -> int:
        """Return where *data* is to be cut, or its size: behind what may be the end of a body in chunks."""
        before = self._tail[1:]
        at = (before + data).find(_LAST_CHUNK)
        return len(data) if at < 0 else at + len(_LAST_CHUNK) - len(before)

    def _ask(self) -> None:
        self._slicing = True
        self._pace.ask(self._parse_next)

    def _parse_next(self) -> None:
        if self.transport is None:
            self._unparsed = b""
            return
        left = SLICE_BYTES
        for cuts in range(_CUTS + 1):
            end = self._cut(self._unparsed[:left]) if cuts < _CUTS else left
            data, self._unparsed = self._unparsed[:end], self._unparsed[end:]
            self.parse_slice(data)
            left -= end
            if not (left and self._unparsed) or self._reading_paused or self._buffer_paused:
                break
        self._slicing = False
        self._go_on()

    def _go_on(self) -> None:
        """Parse what is left, then read, unless a body has enough."""
        if self._slicing or self._reading_paused or self._buffer_paused:
            return
        if self._unparsed:
            self._ask()
        else:
            self._resume_transport_reading()

    # ---- what is not wanted for now

    def pause_reading(self) -> None:
        """Read nothing more, and parse no further slice.

        aiohttp also has the parser stop, in the body it is in. Told so by the last of many chunks it would stop in the
        next request's body, where nobody tells it to go on.
        """
        self._reading_paused = True
        self._pause_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - as in aiohttp
        """Read on, if reading was paused: aiohttp asks for it with every piece of a body that is taken."""
        if self._reading_paused:
            self._reading_paused = False
            if self._unparsed:
                self._loop.call_soon(self._go_on)  # we may be inside the parser
            else:
                self._go_on()

    def _resume_transport_reading(self) -> None:
        if self._unparsed:
            self._loop.call_soon(self._go_on)
        else:
            super()._resume_transport_reading()

    # ---- behind what nothing is read

    def look_behind(self, data: bytes, parsed: int) -> None:
        """End the connection behind a request that the parser does not part from the next one; told of each piece.

        It drops what came in one piece with the end of an offer of another protocol. And of trailers it hands the last
        one on: a body in chunks had none if it ended with a piece that was cut behind its last chunk.
        """
        for message, content in tuple(self._messages):
            if not isinstance(message, NotHttp) and message.upgrade:
                self.end_behind(content)
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        bodies = [self._chunks]
        for message, content in tuple(self._messages)[len(self._messages) - parsed :]:
            bodies.append(content if not isinstance(message, NotHttp) and message.chunked else None)
        last = bodies.pop()
        for body in bodies:
            if body is not None and body.is_eof():
                self.end_behind(body)
        self._chunks = None
        if last is not None and not last.is_eof():
            self._chunks = last
        elif last is not None and (self._tail != _LAST_CHUNK or len(self._messages) >= _STOPPED):
            self.end_behind(last)

    def end_behind(self, content: StreamReader) -> None:
        """Answer the request of this body as the connection's last one."""
        for place, (message, body) in enumerate(self._messages):
            if body is content and not isinstance(message, NotHttp):
                self._messages[place] = (message._replace(should_close=True), content)
                return
        self.end_behind_answer()

    def end_behind_answer(self) -> None:
        """Have the answer that is being given be the last one."""
        self.close()

    # ---- the parser's count

    @property
    def inside_body(self) -> bool:
        """Whether what comes next belongs to a request that was parsed."""
        newest = self._messages[-1][1] if self._messages else self._late_body
        return newest is not None and not newest.is_eof()

    def take_body(self, content: StreamReader) -> None:
        """Note the body of a request that is being taken; aiohttp tells the parser of each.

        The parser stops at 32 requests that were parsed to their ends and not taken. Of one that was taken before its
        end it is told too early, and counts it for ever: after 32 of them it would stop at every request, and keep
        whatever follows.
        """
        self.settle_body()
        if not content.is_eof():
            self._late_body = content

    def settle_body(self) -> None:
        """Tell the parser of a request that has ended since it was taken."""
        if self._late_body is not None and self._late_body.is_eof():
            self._late_body = None
            if self._parser is not None:
                self._parser.message_consumed()
