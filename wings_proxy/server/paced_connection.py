"""A client's connection whose parser is fed by us: how much at once, when, and what it is told of requests taken.

Of what may be chunks, and costs the parser by the chunk, only a little is parsed in one turn of the loop. What this
rests on, for aiohttp 3.14, each point held by a test:

- a body with too much that nobody took, or too many chunks, calls `pause_reading`; each piece that is taken, and its
  end, call `resume_reading`;
- the parser counts a request at its end, and `message_consumed` takes one off the count, never below none.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import StreamReader, web

from wings_proxy.proxy.upload_pace import UploadPace

SLICE_BYTES: Final = 8 * 1024
"""What is parsed at once of what may be chunks: of one byte each, that many cost some milliseconds."""


class PacedConnection(web.RequestHandler):
    """Has aiohttp's parser take what came in time, all of it in the end, and no more than somebody reads."""

    __slots__ = ("_late_body", "_pace", "_slicing", "_unparsed")

    def __init__(self, manager: web.Server, *, pace: UploadPace, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._pace = pace
        self._unparsed = b""
        """What came and is parsed in slices; nothing more is read before all of it is."""
        self._slicing = False
        """Whether the next slice has been asked for, or is being parsed."""
        self._late_body: StreamReader | None = None
        """The body of a request that was taken before its end."""

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

    def _ask(self) -> None:
        self._slicing = True
        self._pace.ask(self._parse_next)

    def _parse_next(self) -> None:
        if self.transport is None:
            self._unparsed = b""
            return
        data, self._unparsed = self._unparsed[:SLICE_BYTES], self._unparsed[SLICE_BYTES:]
        self.parse_slice(data)
        self._slicing = False
        self._go_on()

    def _go_on(self) -> None:
        """Parse what is left, then read, unless a body has enough."""
        if self._slicing or self._reading_paused:
            return
        if self._unparsed:
            self._ask()
        elif not self._buffer_paused:
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
        if not self._unparsed:
            super()._resume_transport_reading()

    # ---- the parser's count

    @property
    def inside_body(self) -> bool:
        """Whether what comes next belongs to a request that was taken."""
        return self._late_body is not None and not self._late_body.is_eof()

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

    def parse_kept(self) -> None:
        """Have the parser go on with what it kept when it stopped, after an answer: nothing else may come to do so."""
        self.settle_body()
        if not (self._messages or self._upgraded):
            self.data_received(b"")
