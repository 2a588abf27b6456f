"""What the sidecar believes of `engine.status`, a file written by a container it does not trust."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.handover.engine_status import EngineStatus, Phase, parse_status

RUN = "0b1c2d3e-4f50-4a61-8b72-9c83ad94be05"


def status_file(**changes: Any) -> bytes:
    fields = {
        "run": RUN,
        "generation": "0123456789ab",
        "phase": "running",
        "asked": False,
        "code": None,
        "started": 1795381792,
        "changed": 1795381793,
    }
    return json.dumps(fields | changes).encode() + b"\n"


def test_a_running_engine() -> None:
    assert parse_status(status_file()) == EngineStatus(
        run=RUN,
        generation="0123456789ab",
        phase=Phase.RUNNING,
        asked=False,
        code=None,
        started=1795381792,
        changed=1795381793,
    )


def test_a_stop_that_was_asked_for() -> None:
    status = parse_status(status_file(phase="stop_requested", asked=True))
    assert status is not None
    assert (status.phase, status.asked, status.code) == (Phase.STOP_REQUESTED, True, None)


@pytest.mark.parametrize(
    ("asked", "code"), [(True, 0), (True, 143), (False, 0), (False, 1), (False, 137), (False, 255)]
)
def test_an_end_keeps_its_exit_code_and_whether_it_was_asked_for(asked: bool, code: int) -> None:
    status = parse_status(status_file(phase="exited", asked=asked, code=code))
    assert status is not None
    assert (status.phase, status.asked, status.code) == (Phase.EXITED, asked, code)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": RUN.upper()},
        {"run": RUN + "0"},
        {"run": RUN + "\n"},
        {"run": 5},
        {"run": None},
        {"generation": "0123456789a"},
        {"generation": "0123456789AB"},
        {"generation": ["0123456789ab"]},
        {"phase": "loading"},
        {"phase": ["running"]},
        {"phase": {}},
        {"phase": None},
        {"asked": 0},
        {"asked": "false"},
        {"code": 0},
        {"phase": "exited", "code": None},
        {"phase": "exited", "code": 256},
        {"phase": "exited", "code": -1},
        {"phase": "exited", "code": 1.0},
        {"phase": "exited", "code": True},
        {"phase": "running", "asked": True},
        {"phase": "stop_requested", "asked": False},
        {"phase": "stop_requested", "asked": True, "code": 0},
        {"started": -1},
        {"started": 2**53 + 1},
        {"changed": "1795381793"},
        {"changed": None},
        {"pid": 17},
    ],
)
def test_anything_that_does_not_fit_is_no_status(changes: dict[str, Any]) -> None:
    assert parse_status(status_file(**changes)) is None


@pytest.mark.parametrize("missing", ["run", "generation", "phase", "asked", "code", "started", "changed"])
def test_a_status_without_one_of_its_parts_is_no_status(missing: str) -> None:
    fields = json.loads(status_file())
    del fields[missing]
    assert parse_status(json.dumps(fields).encode()) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\x00" * 300,
        b"running",
        b"null",
        b"[]",
        b'"running"',
        b"NaN",
        b"\xff\xfe{}",
        b"[" * 1024,
        b'{"run": ' * 100,
        status_file()[:-3],
        status_file() + status_file(),
        status_file().replace(b'"asked": false', b'"asked": false, "asked": false'),
        status_file() + b" " * 1024,
        b'{"code": ' + b"9" * 1000 + b"}",
    ],
)
def test_broken_files_are_no_status(data: bytes) -> None:
    assert parse_status(data) is None


@given(st.binary(max_size=1100))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert parse_status(data) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["run", "generation", "phase", "asked", "code", "started", "changed"]), json_values, min_size=1
    )
)
def test_a_status_of_surprising_values_is_right_or_nothing(changes: dict[str, Any]) -> None:
    status = parse_status(status_file(**changes))
    if status is not None:
        assert status.phase in set(Phase)
        assert (status.code is not None) == (status.phase is Phase.EXITED)


@given(
    run=st.uuids().map(str),
    asked=st.booleans(),
    code=st.integers(0, 255),
    started=st.integers(0, 2**53),
    changed=st.integers(0, 2**53),
)
def test_every_end_a_script_can_write_is_read_back(
    run: str, asked: bool, code: int, started: int, changed: int
) -> None:
    data = status_file(run=run, phase="exited", asked=asked, code=code, started=started, changed=changed)
    assert parse_status(data) == EngineStatus(run, "0123456789ab", Phase.EXITED, asked, code, started, changed)
