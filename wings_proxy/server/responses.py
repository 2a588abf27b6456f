"""Answers as aiohttp's task takes them: our own errors, and what was sent past it."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from wings_proxy.proxy.api_errors import ApiError

SERVER: Final = "wings-infer"
"""The `Server` field of our own answers."""


class SentResponse(web.StreamResponse):
    """Tells aiohttp that an answer was sent, and whether the connection goes on."""

    def __init__(self, *, keep_alive: bool) -> None:
        # Not super().__init__(): it makes header and cookie containers for an answer that is already out.
        self._goes_on = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether aiohttp may read another request from the connection."""
        return self._goes_on

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send nothing: the head is out."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send nothing: the body is out."""


def error_response(error: ApiError) -> web.Response:
    """Return an error of ours as an aiohttp response."""
    response = web.Response(status=error.status, body=error.body, headers={"Server": SERVER})
    for name, value in error.headers:
        response.headers.add(name.decode("ascii"), value.decode("ascii"))
    if error.close:
        response.force_close()
        # To a head it could not read aiohttp answers as HTTP/1.0 does, and says nothing of the end (RFC 9112, 9.6).
        response.headers["Connection"] = "close"
    return response
