"""The alerts: each has its cases, its heading in the runbook, and speaks of metrics there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.files import ALERT_TESTS, GENERATED, MONITORING, README, RULES, RUNBOOK, promtool, rules
from tests.monitoring.promql import AWAITED, names_in, served_names

ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


CASES = [case for test in yaml.safe_load(ALERT_TESTS.read_text("utf-8"))["tests"] for case in test["promql_expr_test"]]


def named(alert: dict[str, Any]) -> str:
    return f"{alert['alert']}-{alert['labels']['severity']}"


@pytest.mark.parametrize("file", GENERATED, ids=lambda file: file.name)
def test_the_generated_files_are_those_of_their_source(file: Path) -> None:
    assert file.read_text("utf-8") == GENERATED[file](), "run: python -m tests.monitoring"


def test_the_operators_rules_are_the_plain_ones() -> None:
    wrapped = yaml.safe_load((MONITORING / "rules.yaml").read_text("utf-8"))
    assert (wrapped["apiVersion"], wrapped["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert wrapped["spec"] == yaml.safe_load(RULES.read_text("utf-8"))


@pytest.mark.parametrize("alert", ALERTS, ids=named)
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    # One line on a telephone; labels filled in.
    assert len(re.sub(r"{{.*?}}", "wings-infer-5d7c", notes["summary"])) <= 90
    page, _, anchor = notes["runbook_url"].partition("#")
    assert page.endswith("/deploy/monitoring/runbook.md")
    assert anchor == alert["alert"].lower()


# One for each thing that goes wrong with an engine, and no more: who is woken by many reads none.
NAMES = [
    "WingsEngineDown",
    "WingsEngineCrashLooping",
    "WingsEngineStalled",
    "WingsEngineLoadSlow",
    "WingsEngineFlapping",
    "WingsErrorRatioHigh",
    "WingsTimeToFirstTokenBurn",
    "WingsKvCacheFull",
    "WingsQueueGrowing",
    "WingsClientAbortsHigh",
    "WingsScrapeFailing",
    "WingsDrainSlow",
]


def test_there_are_twelve_alerts_and_each_name_has_one_rule_a_severity() -> None:
    assert sorted({alert["alert"] for alert in ALERTS}) == sorted(NAMES)
    assert len({named(alert) for alert in ALERTS}) == len(ALERTS)


def test_the_runbook_and_the_table_have_every_alert_and_no_other() -> None:
    names = list(dict.fromkeys(alert["alert"] for alert in ALERTS))
    assert sorted(re.findall(r"^## (\w+)$", RUNBOOK.read_text("utf-8"), re.MULTILINE)) == sorted(names)
    table = dict(re.findall(r"^\| (Wings\w+) \| ([\w, ]+) \|", README.read_text("utf-8"), re.MULTILINE))
    assert table == {
        name: ", ".join(alert["labels"]["severity"] for alert in ALERTS if alert["alert"] == name) for name in names
    }


@pytest.mark.parametrize("alert", ALERTS, ids=named)
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert: dict[str, Any]) -> None:
    name, severity = f'alertname="{alert["alert"]}"', f'severity="{alert["labels"]["severity"]}"'
    fires = [sample["labels"] for case in CASES for sample in case["exp_samples"]]
    assert any(name in labels and severity in labels for labels in fires)
    quiet = [case["expr"] for case in CASES if name in case["expr"] and not case["exp_samples"]]
    assert any(severity in expression or "severity" not in expression for expression in quiet)


def test_every_recording_rule_has_a_case() -> None:
    asked = " ".join(case["expr"] for case in CASES)
    # The others are what the alerts on them are made of.
    tested = {name for name in RECORDED if name.startswith("model:")}
    assert [name for name in sorted(tested) if name not in asked] == []


def test_every_metric_is_one_the_code_serves() -> None:
    used = names_in((MONITORING / "dashboard.json").read_text("utf-8"))
    used |= names_in(RUNBOOK.read_text("utf-8")) | names_in(README.read_text("utf-8"))
    for rule in rules():
        used |= names_in(rule["expr"]) | names_in(str(rule.get("annotations", "")))
    assert used - served_names() == AWAITED & used, "served or misspelt: see AWAITED in tests/monitoring/promql.py"
    assert used >= AWAITED
    recorded = {name for rule in rules() for name in re.findall(r"\w+:wings_\w+(?::\w+)+", rule["expr"])}
    recorded |= set(re.findall(r"\w+:wings_\w+(?::\w+)+", README.read_text("utf-8")))
    assert recorded <= RECORDED


def test_prometheus_accepts_the_rules() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", ALERT_TESTS)
