"""API keys from a mounted file: who may send requests, and what the engine sees of it.

One key per line; blank lines and lines that start with `#` are skipped. A Kubernetes Secret is replaced by
renaming a directory, so a change is noticed by what `stat` says of the file behind the path.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from wings_proxy.proxy.api_errors import ApiError, ErrorCode

logger = logging.getLogger(__name__)

# Ten thousand long keys; whatever is larger is another file.
_LARGEST_FILE: Final = 1024 * 1024


class ApiKeysError(Exception):
    """The key file cannot be used; the message names the file and the reason, never a key."""


class Authorizer(Protocol):
    """Decides whether a request may go on."""

    def __call__(self, keys: Sequence[bytes]) -> ApiError | None:
        """Return the refusal of a request that offers these keys, or None to let it pass."""


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


def read_key_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Return what a key file holds, and what `stat` says of it. Raises `OSError` for what cannot be one.

    A FIFO put in its place never makes us wait for its writer.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if found.st_size > _LARGEST_FILE:
            raise OSError(errno.EFBIG, f"larger than {_LARGEST_FILE} bytes")
        return file.read(_LARGEST_FILE), found


class ApiKeys:
    """The keys in force; an `Authorizer`.

    Compares digests in constant time and always all of them, so that the time taken tells nothing about a
    key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: tuple[bytes, ...] = ()
        self._seen: tuple[int, int, int] | None = None

    def __call__(self, keys: Sequence[bytes]) -> ApiError | None:
        """Refuse a request that offers no key, or any key that is not one of ours."""
        accepted = bool(keys)
        for key in keys:
            accepted &= self._accepts(key)
        if accepted:
            return None
        message = "the API key is not valid" if keys else "no API key: send it as Authorization: Bearer or x-api-key"
        return ApiError(401, ErrorCode.UNAUTHORIZED, message)

    def _accepts(self, key: bytes) -> bool:
        offered = hashlib.sha256(key).digest()
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(offered, digest)
        return found

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
        content, found = read_key_file(self._path)
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return None
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
