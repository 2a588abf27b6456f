"""Freed memory is kept where the C library can, and nothing happens where it cannot."""

from __future__ import annotations

import ctypes

import pytest

from wings_proxy.server import allocator


class Library:
    def __init__(self) -> None:
        self.options: dict[int, int] = {}

    def mallopt(self, option: int, size: int) -> int:
        self.options[option] = size
        return 1


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert allocator.keep_freed_memory()
    assert library.options == {-1: 8 * 1024 * 1024, -3: 1024 * 1024}  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
