"""What aiohttp's parser makes of bytes."""

from __future__ import annotations

import asyncio

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage


def parsed(head: bytes) -> RawRequestMessage:
    """Return the first request in *head*."""
    loop = asyncio.new_event_loop()
    try:
        messages, _, _ = HttpRequestParser(BaseProtocol(loop), loop, 2**16).feed_data(head)
        message: RawRequestMessage = messages[0][0]
        return message
    finally:
        loop.close()
