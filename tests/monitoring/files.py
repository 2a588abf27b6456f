"""The files of `deploy/monitoring/`, and how those that are generated are made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.monitoring.dashboard import dashboard

ROOT: Final = Path(__file__).parent.parent.parent
MONITORING: Final = ROOT / "deploy" / "monitoring"
RULES: Final = MONITORING / "prometheus.rules.yml"
RUNBOOK: Final = MONITORING / "runbook.md"
README: Final = MONITORING / "README.md"
ALERT_TESTS: Final = Path(__file__).parent / "alerts.test.yml"
# Where `make .prometheus/promtool` puts them.
PROGRAMS: Final = ROOT / ".prometheus"

_PROMETHEUS_RULE: Final = """\
# Made from prometheus.rules.yml by `python -m tests.monitoring`: edit that file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: wings-infer
  labels:
    app.kubernetes.io/name: wings-infer
    app.kubernetes.io/component: monitoring
spec:
"""


def prometheus_rule() -> str:
    """The plain rule file as the Prometheus operator wants it."""
    _, head, groups = RULES.read_text("utf-8").partition("groups:\n")
    return _PROMETHEUS_RULE + textwrap.indent(head + groups, "  ")


def dashboard_json() -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


GENERATED: Final[Mapping[Path, Callable[[], str]]] = {
    MONITORING / "rules.yaml": prometheus_rule,
    MONITORING / "dashboard.json": dashboard_json,
}


def rules() -> list[dict[str, Any]]:
    """Every rule, recording rules and alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def program(name: str) -> str:
    """Return the path of `promtool` or `prometheus`; skips the test where there is none, but not in CI."""
    path = shutil.which(name, path=f"{PROGRAMS}:{os.environ['PATH']}")
    if path is None:
        assert not os.environ.get("CI"), f"CI must run this: make .prometheus/{name}"
        pytest.skip(f"no {name}: make .prometheus/{name} (Debian), or install Prometheus")
    return path


def promtool(*arguments: str | Path, given: str | None = None) -> None:
    """Run promtool; what it has to say, warnings too, is a failure."""
    command = [program("promtool"), *arguments]
    run = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
