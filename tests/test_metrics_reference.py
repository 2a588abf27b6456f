"""The page of the metrics says what the code does."""

from __future__ import annotations

import re

import pytest

from tests.metrics_reference import PAGE, Family, families, page, reference, shown_of

# Prometheus' own advice on names: base units, and a counter ends in `_total`, nothing else does.
NOT_BASE_UNITS = r"_(ms|milliseconds|micros|minutes|hours|kb|kib|mb|mib|bits|percent|pct)(_|$)"


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m tests.metrics_reference"


def test_every_family_is_ours_and_says_what_it_is_in_a_sentence() -> None:
    for family in families():
        assert family.name.startswith("wings_")
        assert family.documentation.endswith(".")


def test_one_call_tells_all_there_is_to_know_of_a_family() -> None:
    found = {family.name: family for family in reference()}
    assert len(found) == len(reference())
    assert found["wings_requests_total"] == Family(
        "wings_requests_total", "counter", ("code", "route"), "Forwarded requests that ended; 499: the client left."
    )
    assert found["wings_engine_requests_running"].labels == ("model_name", "source")
    assert found["wings_event_loop_lag_seconds"].type == "histogram"
    assert found["wings_event_loop_lag_seconds"].labels == ()


def test_names_are_as_prometheus_advises() -> None:
    for family in reference():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", family.name), "no colon, no capital, no digit"
        assert not re.search(NOT_BASE_UNITS, family.name)
        assert family.name.endswith("_total") is (family.type == "counter"), family
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


TOLD_BY_ALL = {"requests_running", "requests_waiting", "prefix_cache_hit_ratio", "prompt_tokens_total"}
TOLD_BY_ALL |= {"generation_tokens_total", "generation_tokens_per_second"}


@pytest.mark.parametrize(
    ("engine", "more", "in_log"),
    [
        (
            "vllm",
            {"kv_cache_usage_ratio", "prompt_tokens_per_second"},
            {"requests_waiting", "kv_cache_usage_ratio", "prefix_cache_hit_ratio"},
        ),
        ("sglang", {"kv_cache_usage_ratio"}, {"requests_waiting", "kv_cache_usage_ratio"}),
        ("llamacpp", {"prompt_tokens_per_second"}, set()),
    ],
)
def test_what_each_engine_tells_in_its_metrics_and_in_its_log(engine: str, more: set[str], in_log: set[str]) -> None:
    metrics, log = ({name.removeprefix("wings_engine_") for name in shown_of(engine, log=log)} for log in (False, True))
    assert metrics == TOLD_BY_ALL | more
    # Never a counter: what a prompt may have put there is not summed up.
    assert log == {"requests_running", "prompt_tokens_per_second", "generation_tokens_per_second"} | in_log
