"""A request's body that is all here."""

from __future__ import annotations


class WholeBody:
    """A body that came with its head; as much of aiohttp's `StreamReader` as such a one needs."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def is_eof(self) -> bool:
        """Say that nothing more comes."""
        return True

    def read_nowait(self) -> bytes:
        """Return the body, the first time."""
        data, self._data = self._data, b""
        return data
