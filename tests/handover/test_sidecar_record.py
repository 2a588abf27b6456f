"""What the sidecar believes of its own record, on a volume that others write to as well."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.handover.sidecar_record import MAX_RECORD_BYTES, SidecarRecord, parse_record

RUN = "0b1c2d3e-4f50-4a61-8b72-9c83ad94be05"
GENERATION = "0123456789ab"
FULL = SidecarRecord(RUN, GENERATION, ready=True, began=12.5, loaded_generation="ba9876543210", load_seconds=90.25)
POOR = SidecarRecord(RUN, GENERATION, ready=False, began=None, loaded_generation=None, load_seconds=None)


def record_file(**changes: Any) -> bytes:
    return json.dumps(json.loads(FULL.to_bytes()) | changes).encode()


@pytest.mark.parametrize("record", [FULL, POOR], ids=["full", "poor"])
def test_what_is_written_is_read(record: SidecarRecord) -> None:
    assert record.to_bytes().endswith(b"}\n")
    assert len(record.to_bytes()) < 300
    assert parse_record(record.to_bytes()) == record


def test_whole_seconds_are_seconds_too() -> None:
    assert parse_record(record_file(began=12)) == parse_record(record_file(began=12.0)) != None  # noqa: E711


@pytest.mark.parametrize(
    "changes",
    [
        {"run": RUN.upper()},
        {"run": RUN + "\n"},
        {"run": None},
        {"run": 5},
        {"generation": "0123456789AB"},
        {"generation": ["0123456789ab"]},
        {"ready": 1},
        {"ready": "true"},
        {"ready": None},
        {"began": -0.1},
        {"began": 1e11},
        {"began": float("nan")},
        {"began": float("inf")},
        {"began": True},
        {"began": "12"},
        {"began": 10**400},
        {"load_seconds": None},
        {"loaded_generation": None},
        {"load_seconds": 7 * 86_400 + 1},
        {"load_seconds": float("-inf")},
        {"loaded_generation": "x"},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_not_exactly_a_record_is_none(changes: dict[str, Any]) -> None:
    assert parse_record(record_file()) == FULL
    assert parse_record(record_file(**changes)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 1000,
        b"1" * 1000,
        FULL.to_bytes().rstrip() + b" " * MAX_RECORD_BYTES,
        record_file()[:-1] + b', "ready": true}',
    ],
    ids=["empty", "null", "list", "no text", "deep", "number", "long", "twice"],
)
def test_nor_are_other_bytes(data: bytes) -> None:
    assert parse_record(data) is None


@given(
    st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), st.dictionaries(st.text(), st.none()))
)
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    assert parse_record(data) is None
