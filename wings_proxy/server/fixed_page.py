"""A text that stays the same as long as the process lives, served with an entity tag."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from aiohttp import web


class FixedPage:
    """Sent whole, or as a 304 to a browser that has it (RFC 9110 §13.1.2): a look a minute costs a head, not a page."""

    def __init__(self, text: str, content_type: str, headers: Mapping[str, str]) -> None:
        """Take the text and the headers it is sent with; it may be kept, and has to be asked for again each time."""
        self.text = text
        self._content_type = content_type
        self._tag = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", **headers}

    async def get(self, request: web.Request) -> web.Response:
        """Answer a GET or a HEAD."""
        if any(tag.value in (self._tag, "*") for tag in request.if_none_match or ()):
            response = web.Response(status=304, headers=self._headers)
        else:
            response = web.Response(
                text=self.text, content_type=self._content_type, charset="utf-8", headers=self._headers
            )
        response.etag = self._tag
        return response
