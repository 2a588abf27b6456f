"""The Grafana dashboard, panel by panel; `python -m tests.monitoring` writes it as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from wings_proxy.lifecycle.state import State

# Filters every expression: the pods chosen. The variable `pod` already follows `namespace` and `model_name`.
_PODS: Final = 'namespace=~"$namespace", pod=~"$pod"'
_RATE: Final = "[$__rate_interval]"
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

_COLOURS: Final = {
    State.WAITING: "light-blue",
    State.STARTING: "blue",
    State.LOADING: "dark-blue",
    State.READY: "green",
    State.UNHEALTHY: "orange",
    State.STOPPING: "purple",
    State.FAILED: "red",
    State.DRAINING: "dark-purple",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: what it asks (expression, legend), in which unit, and what to read from it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    width: int = 8
    options: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


def _selected(metric: str, *matchers: str) -> str:
    return f"{metric}{{{', '.join((_PODS, *matchers))}}}"


def _rate(metric: str, *matchers: str) -> str:
    return f"rate({_selected(metric, *matchers)}{_RATE})"


def _increase(metric: str) -> str:
    return f"increase({_selected(metric)}{_RATE})"


def _quantile(quantile: float, histogram: str, by: str = "le") -> str:
    return f"histogram_quantile({quantile}, sum by ({by}) ({_rate(histogram + '_bucket')}))"


def _quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    return (_quantile(0.5, histogram), "p50"), (_quantile(0.99, histogram), "p99")


def _in_state(state: State) -> str:
    return _selected("wings_engine_state", f'state="{state}"')


# Grafana colours a row by number: each pod's state as its place in the enumeration.
_STATE: Final = (
    "max by (pod) (" + " or ".join(f"{n} * ({_in_state(state)} == 1)" for n, state in enumerate(State)) + ")"
)
_STATE_MAPPING: Final = {
    "type": "value",
    "options": {str(n): {"text": state, "color": _COLOURS[state], "index": n} for n, state in enumerate(State)},
}

_FAILED: Final = _rate("wings_requests_total", 'code=~"5.."')
_ERRORS: Final = f"sum({_FAILED}) / sum({_rate('wings_requests_total')})"

_STAT: Final[dict[str, Any]] = {"kind": "stat", "width": 4}

ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "Now",
        (
            Panel("Engines ready", ((f"sum({_in_state(State.READY)})", ""),), **_STAT),
            Panel("Requests", ((f"sum({_rate('wings_requests_total')})", ""),), "reqps", **_STAT),
            Panel("Answers 5xx", ((_ERRORS, ""),), "percentunit", **_STAT),
            Panel("First token, p99", ((_quantile(0.99, "wings_time_to_first_token_seconds"), ""),), "s", **_STAT),
            Panel(
                "Tokens out per second",
                ((f"sum({_selected('wings_engine_generation_tokens_per_second')})", ""),),
                **_STAT,
            ),
            Panel(
                "Configuration drift",
                ((f"sum({_selected('wings_config_drift')})", ""),),
                text="Pods whose engine runs another script than the one published, or whose file has changed.",
                **_STAT,
            ),
        ),
    ),
    (
        "The engine's life",
        (
            Panel(
                "State",
                ((_STATE, "{{pod}}"),),
                text="Green is ready. Loading is blue, whatever was lost is orange or red.",
                kind="state-timeline",
                width=24,
                options={"mergeValues": True, "showValue": "auto", "rowHeight": 0.8},
                defaults={"mappings": [_STATE_MAPPING], "custom": {"fillOpacity": 80, "lineWidth": 0}},
            ),
            Panel("Restarts", ((f"sum by (pod) ({_increase('wings_engine_restarts_total')})", "{{pod}}"),)),
            Panel(
                "Failures by reason",
                ((f"sum by (reason) ({_increase('wings_engine_failures_total')})", "{{reason}}"),),
            ),
            Panel("Stalls", ((f"sum by (pod) ({_increase('wings_engine_stalls_total')})", "{{pod}}"),)),
            Panel(
                "Load progress",
                ((f"max by (pod) ({_selected('wings_engine_load_progress_ratio')})", "{{pod}}"),),
                "percentunit",
                "Of the present phase; only while an engine loads.",
            ),
            Panel(
                "Load phases",
                ((f"max by (pod, phase) ({_selected('wings_engine_load_phase_seconds')})", "{{pod}} {{phase}}"),),
                "s",
                "How long each phase of the present run took.",
            ),
            Panel(
                "Drain",
                ((f"max by (pod) ({_selected('wings_drain_duration_seconds')})", "{{pod}}"),),
                "s",
                "How long the engine's stop or our own takes, or the last one took.",
            ),
            Panel(
                "Health probes",
                ((f"sum by (outcome) ({_rate('wings_engine_probe_results_total')})", "{{outcome}}"),),
                "ops",
            ),
        ),
    ),
    (
        "Requests",
        (
            Panel(
                "Requests by code",
                ((f"sum by (code) ({_rate('wings_requests_total')})", "{{code}}"),),
                "reqps",
                "499: the client left.",
            ),
            Panel("Time to first token", _quantiles("wings_time_to_first_token_seconds"), "s"),
            Panel("Between two chunks", _quantiles("wings_inter_chunk_seconds"), "s"),
            Panel("Duration", _quantiles("wings_request_duration_seconds"), "s"),
            Panel("In flight", ((f"sum by (pod) ({_selected('wings_requests_in_flight')})", "{{pod}}"),)),
            Panel(
                "Client aborts by phase",
                ((f"sum by (phase) ({_rate('wings_client_aborts_total')})", "{{phase}}"),),
                "reqps",
            ),
            Panel(
                "Upstream errors by kind",
                ((f"sum by (kind) ({_rate('wings_upstream_errors_total')})", "{{kind}}"),),
                "reqps",
                "Between us and the engine.",
            ),
            Panel(
                "Errors of our own by code",
                ((f"sum by (code) ({_rate('wings_api_errors_total')})", "{{code}}"),),
                "reqps",
            ),
            Panel(
                "Bytes",
                (
                    (f"sum({_rate('wings_request_bytes_total')})", "requests"),
                    (f"sum({_rate('wings_response_bytes_total')})", "answers"),
                ),
                "Bps",
            ),
        ),
    ),
    (
        "The engine's work",
        (
            Panel(
                "Tokens per second",
                (
                    (f"sum({_selected('wings_engine_prompt_tokens_per_second')})", "prompt"),
                    (f"sum({_selected('wings_engine_generation_tokens_per_second')})", "generated"),
                ),
            ),
            Panel(
                "Running and waiting",
                (
                    (f"sum by (pod) ({_selected('wings_engine_requests_running')})", "{{pod}} running"),
                    (f"sum by (pod) ({_selected('wings_engine_requests_waiting')})", "{{pod}} waiting"),
                ),
            ),
            Panel(
                "KV cache in use",
                ((f"max by (pod) ({_selected('wings_engine_kv_cache_usage_ratio')})", "{{pod}}"),),
                "percentunit",
            ),
            Panel(
                "Prefix cache hits",
                ((f"max by (pod) ({_selected('wings_engine_prefix_cache_hit_ratio')})", "{{pod}}"),),
                "percentunit",
            ),
            Panel(
                "Engine scrapes that succeed",
                ((f"min by (pod) ({_selected('wings_engine_scrape_success')})", "{{pod}}"),),
                "percentunit",
            ),
            Panel(
                "Engine scrapes, time and age",
                (
                    (f"max by (pod) ({_selected('wings_engine_scrape_duration_seconds')})", "{{pod}} took"),
                    (f"max by (pod) ({_selected('wings_engine_scrape_age_seconds')})", "{{pod}} is old"),
                ),
                "s",
            ),
        ),
    ),
    (
        "The sidecar",
        (
            Panel(
                "Event loop lag, p99",
                ((_quantile(0.99, "wings_event_loop_lag_seconds", "le, pod"), "{{pod}}"),),
                "s",
                "Every stream of the pod is late by this much.",
            ),
            Panel(
                "Engine's log",
                (
                    (f"sum by (pod) ({_rate('wings_engine_log_lines_total')})", "{{pod}} lines"),
                    (f"sum by (pod) ({_rate('wings_engine_log_dropped_bytes_total')})", "{{pod}} bytes dropped"),
                ),
                "ops",
            ),
            Panel(
                "Connections to the engine",
                (
                    (f"sum by (pod) ({_rate('wings_upstream_connections_opened_total')})", "{{pod}} opened/s"),
                    (f"sum by (pod) ({_selected('wings_upstream_connections_idle')})", "{{pod}} idle"),
                ),
            ),
            Panel(
                "Versions",
                (
                    (
                        f"count by (version, engine_type, model_name) ({_selected('wings_build_info')})",
                        "{{version}} {{engine_type}} {{model_name}}",
                    ),
                ),
                width=24,
            ),
        ),
    ),
)


def expressions() -> list[str]:
    """Every expression of the dashboard."""
    return [expression for _, panels in ROWS for panel in panels for expression, _ in panel.queries]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model (schema 39: Grafana 10.4 and later)."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, members in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
                "panels": [],
            }
        )
        top, left, height = top + 1, 0, 0
        for panel in members:
            if left + panel.width > 24:
                top, left = top + height, 0
            height = 4 if panel.kind == "stat" else 7
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, place))
            left += panel.width
        top += height
    return {
        "uid": "wings-infer",
        "title": "wings-infer",
        "description": "The engine's life, its requests and its work; the same for every engine.",
        "tags": ["llm", "wings-infer"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, **panel.defaults}, "overrides": []},
        "options": panel.options,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    chosen = 'namespace=~"$namespace", model_name=~"$model_name"'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _variable("namespace", "wings_build_info"),
        _variable("model_name", 'wings_build_info{namespace=~"$namespace"}'),
        _variable("pod", f"wings_build_info{{{chosen}}}"),
    ]


def _variable(name: str, series: str) -> dict[str, Any]:
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        # Pods come and go: looked up again whenever the time range changes.
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }
