"""The dashboard is one Grafana can show."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tests.monitoring.dashboard import dashboard, expressions
from tests.monitoring.files import promtool

BOARD = dashboard()
PANELS: list[dict[str, Any]] = BOARD["panels"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert sorted(set(numbers)) == sorted(numbers)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)


def test_everything_comes_from_the_data_source_and_the_pods_chosen() -> None:
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == [
        "datasource",
        "namespace",
        "model_name",
        "pod",
    ]
    for panel in PANELS:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("wings_") == target["expr"].count('namespace=~"$namespace", pod=~"$pod"')


def test_every_state_has_a_colour_and_a_name() -> None:
    (timeline,) = (panel for panel in PANELS if panel["type"] == "state-timeline")
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    assert [row["text"] for row in mapping["options"].values()] == [
        "waiting",
        "starting",
        "loading",
        "ready",
        "unhealthy",
        "stopping",
        "failed",
        "draining",
    ]
    (target,) = timeline["targets"]
    assert target["expr"].startswith(
        'max by (pod) (0 * (wings_engine_state{namespace=~"$namespace", pod=~"$pod", state="waiting"} == 1) or 1 * ('
    )


def test_it_is_json_that_no_datasource_is_written_into() -> None:
    text = json.dumps(BOARD)
    assert "localhost" not in text
    assert "http" not in text


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    # As rules, since promtool checks those.
    written = [
        {"record": f"panel:{n}", "expr": expression.replace("$__rate_interval", "1m")}
        for n, expression in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": written}]}))
    promtool("check", "rules", file)
