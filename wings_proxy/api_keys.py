"""API keys from a mounted file: who may send requests, and what the engine sees of it.

One key per line; blank lines and lines that start with `#` are skipped. A Kubernetes Secret is replaced by
renaming a directory, so a change is noticed by what `stat` says of the file behind the path.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from wings_proxy.api_errors import ApiError, ErrorCode

logger = logging.getLogger(__name__)

_SCHEME = b"bearer "


class ApiKeysError(Exception):
    """The key file cannot be used; the message names the file and the reason, never a key."""


class Authorizer(Protocol):
    """Decides whether a request may go on."""

    def __call__(self, fields: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        """Return the refusal of a request with these header fields, or None to let it pass."""


def presented_keys(fields: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return what a request offers as keys, in `Authorization: Bearer` and `x-api-key`."""
    keys = []
    for name, value in fields:
        known = name.lower()
        if known == b"x-api-key":
            keys.append(value)
        elif known == b"authorization" and value[: len(_SCHEME)].lower() == _SCHEME:
            keys.append(value[len(_SCHEME) :].strip(b" "))
    return keys


def parse_keys(data: bytes) -> frozenset[bytes]:
    """Return the keys of a key file's content; raises ValueError if there are none or one is not usable."""
    keys = set()
    for number, line in enumerate(data.splitlines(), 1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if not key.isascii() or any(byte <= 0x20 or byte == 0x7F for byte in key):
            raise ValueError(f"line {number}: a key is printable ASCII without spaces")
        keys.add(key)
    if not keys:
        raise ValueError("no key in it")
    return frozenset(keys)


class ApiKeys:
    """The keys in force; an `Authorizer`.

    Compares digests in constant time and always all of them, so that the time taken tells nothing about a
    key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: tuple[bytes, ...] = ()
        self._seen: tuple[int, int, int] | None = None

    def __call__(self, fields: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        """Refuse a request that offers no key, or any key that is not one of ours."""
        keys = presented_keys(fields)
        accepted = [self._accepts(key) for key in keys]
        if accepted and all(accepted):
            return None
        message = "the API key is not valid" if keys else "no API key: send it as Authorization: Bearer or x-api-key"
        return ApiError(401, ErrorCode.UNAUTHORIZED, message)

    def _accepts(self, key: bytes) -> bool:
        offered = hashlib.sha256(key).digest()
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        return any(matches)

    async def load(self) -> bool:
        """Read the file if it changed; True if new keys are in force.

        Raises ApiKeysError; the keys read before then stay in force.
        """
        try:
            content = await asyncio.to_thread(self._read)
            if content is None:
                return False
            keys = parse_keys(content)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ApiKeysError(f"API key file {self._path}: {reason}") from error
        self._digests = tuple(hashlib.sha256(key).digest() for key in sorted(keys))
        return True

    def _read(self) -> bytes | None:
        with self._path.open("rb") as file:
            stat = os.fstat(file.fileno())
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return None
            content = file.read()
        self._seen = seen
        return content

    async def watch(self, *, poll_seconds: float = 5.0) -> None:
        """Reload the file when it changes, until cancelled; a file that became unusable is reported once."""
        reported = ""
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                if await self.load():
                    logger.info("API keys reloaded")
                reported = ""
            except ApiKeysError as error:
                if str(error) != reported:
                    reported = str(error)
                    logger.warning("%s; the keys read before stay in force", error)
