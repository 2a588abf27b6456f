"""What the two containers of `up` are given."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from wings_proxy.local.containers import containers, last_lines
from wings_proxy.local.plan import Plan, make_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan({"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "1"})


def test_the_sidecar_learns_the_volume(plan: Plan, tmp_path: Path) -> None:
    sidecar, _ = containers(plan, tmp_path / "run")

    assert (sidecar.argv[0], *sidecar.argv[-3:]) == (sys.executable, "-m", "wings_proxy", "serve")
    assert sidecar.env["SHARED_VOLUME_PATH"] == str(tmp_path / "run" / "volume")
    assert (sidecar.env["WINGS_HOST"], sidecar.env["ENGINE_TYPE"]) == ("127.0.0.1", "llamacpp")
    assert (tmp_path / "run" / "volume").is_dir()


def test_the_engine_waits_for_the_script_like_a_stock_image(plan: Plan, tmp_path: Path) -> None:
    _, engine = containers(plan, tmp_path / "run")

    assert engine.argv[:2] == ("sh", "-c")
    assert engine.argv[2].endswith(f"exec sh {tmp_path}/run/volume/start_command.sh")
    assert engine.env["CUDA_VISIBLE_DEVICES"] == "1"


def test_the_shim_is_the_engines_alone(plan: Plan, tmp_path: Path) -> None:
    sidecar, engine = containers(plan, tmp_path / "run")

    assert engine.env["PATH"] == f"{tmp_path}/run/bin:/usr/bin:/bin"
    assert os.access(tmp_path / "run" / "bin" / "llama-server", os.X_OK)
    assert sidecar.env["PATH"] == "/usr/bin:/bin"


def test_a_real_llama_server_needs_no_shim(tmp_path: Path) -> None:
    real = tmp_path / "llama-server"
    real.touch(mode=0o755)
    plan = make_plan({"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin"})

    _, engine = containers(plan, tmp_path / "run")

    assert engine.env["PATH"] == f"{tmp_path}:/usr/bin"


def test_logs_are_kept_for_two_runs(plan: Plan, tmp_path: Path) -> None:
    logs = tmp_path / "home" / ".local" / "state" / "wings-infer"
    log = logs / "engine-9000.log"
    for text in ("first", "second", "third"):
        _, engine = containers(plan, tmp_path / "run")
        assert engine.log == log
        assert log.read_text() == ""
        log.write_text(text)

    assert log.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in logs.iterdir()) == [
        *("engine-9000.log", "engine-9000.log.1"),
        *("sidecar-9000.log", "sidecar-9000.log.1"),
    ]
    assert (logs / "engine-9000.log.1").read_text() == "second"


def test_logs_go_where_the_user_keeps_state(tmp_path: Path) -> None:
    plan = make_plan({"HOME": "/nowhere", "XDG_STATE_HOME": str(tmp_path / "state"), "PATH": "/usr/bin"})

    sidecar, _ = containers(plan, tmp_path / "run")

    assert sidecar.log == tmp_path / "state" / "wings-infer" / "sidecar-9000.log"


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100_000 + "\n" + "\n".join(f"line {i}" for i in range(20)) + "\n")

    lines, end = last_lines(log)
    assert (lines, end) == ([f"  | line {i}" for i in range(8, 20)], log.stat().st_size)


def test_lines_of_an_earlier_run_are_not_told_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first run\n")
    _, end = last_lines(log)
    with log.open("a") as file:
        file.write("second run\n")

    assert last_lines(log, end)[0] == ["  | second run"]

    log.write_text("anew\n")
    assert last_lines(log, end)[0] == ["  | anew"]
