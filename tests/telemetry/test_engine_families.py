"""What is shown of the engine: what the newest fetch brought, and nothing older."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from wings_proxy.engines.metrics import EngineSample
from wings_proxy.lifecycle.engine_log import LogCounts
from wings_proxy.telemetry.engine_families import EngineFamilies, EngineFigures
from wings_proxy.telemetry.engine_scrape import EnginePage, ScrapeOutcome

ALWAYS = {"scrape_dropped_lines", "log_lines", "log_dropped_bytes"}


class Shown:
    """The families, and a log and a clock to set by hand."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.said: EngineSample | None = None
        self.succeeded_at: float | None = None
        self.families = EngineFamilies(
            self.registry,
            model_name="tiny",
            from_log=lambda: self.said,
            log_counts=LogCounts(lines=5, dropped_bytes=7),
            succeeded_at=lambda: self.succeeded_at,
            clock=lambda: 100.0,
        )

    def names(self) -> set[str]:
        return {family.name.removeprefix("wings_engine_") for family in self.registry.collect()}

    def value(self, name: str, source: str = "metrics") -> float | None:
        return self.registry.get_sample_value(f"wings_engine_{name}", {"model_name": "tiny", "source": source})


def page(at: float = 100.0, epoch: int = 1, **sample: float) -> EnginePage:
    return EnginePage(ScrapeOutcome.OK, b"", EngineSample(**sample), at, 0.5, 0, epoch)


def test_before_anybody_listens_there_is_nothing_to_show() -> None:
    assert Shown().names() == ALWAYS


def test_a_number_the_engine_does_not_give_is_not_there() -> None:
    shown = Shown()
    shown.families.show(page(running=0.0))
    assert shown.names() == ALWAYS | {"scrape_success", "scrape_duration_seconds", "requests_running"}
    assert shown.value("requests_running") == 0.0


def test_the_same_page_twice_is_one_page() -> None:
    shown = Shown()
    first = page(100.0, generation_tokens=10.0)
    shown.families.show(first)
    second = page(110.0, generation_tokens=30.0)
    for _ in range(2):
        figures = shown.families.show(second)
        assert figures == EngineFigures(second.sample, None, 2.0, "metrics")
    assert shown.value("generation_tokens_per_second") == 2.0


def test_another_run_has_no_rate_yet() -> None:
    shown = Shown()
    shown.families.show(page(100.0, generation_tokens=10.0))
    shown.families.show(page(110.0, epoch=2, generation_tokens=30.0))
    assert shown.value("generation_tokens_per_second") is None
    assert shown.value("generation_tokens_total") == 30.0


@pytest.mark.parametrize("outcome", [ScrapeOutcome.FAILED, ScrapeOutcome.IDLE])
def test_what_cannot_be_read_is_gone_at_once_and_the_log_does_not_stand_in(outcome: ScrapeOutcome) -> None:
    shown = Shown()
    shown.said = EngineSample(running=9.0)
    shown.families.show(page(running=3.0))
    assert shown.families.show(EnginePage(outcome)) is None
    assert shown.value("requests_running") is shown.value("requests_running", "log") is None


def test_an_engine_without_metrics_is_known_by_its_log() -> None:
    shown = Shown()
    off = EnginePage(ScrapeOutcome.OFF)
    assert shown.families.show(off) is None
    shown.said = EngineSample(running=9.0, prompt_tokens_per_second=5.0)
    figures = shown.families.show(EnginePage(ScrapeOutcome.OFF, at=101.0))
    assert figures == EngineFigures(shown.said, 5.0, None, "log")
    assert figures.by_name() == {
        "running": 9.0,
        "waiting": None,
        "kv_cache_usage": None,
        "prefix_cache_hit_ratio": None,
        "prompt_tokens_per_second": 5.0,
        "generation_tokens_per_second": None,
    }
    assert shown.names() == ALWAYS | {"requests_running", "prompt_tokens_per_second"}
    assert shown.value("requests_running", "log") == 9.0


def test_the_age_of_what_was_last_read() -> None:
    shown = Shown()
    shown.succeeded_at = 70.0
    assert shown.registry.get_sample_value("wings_engine_scrape_age_seconds") == 30.0


def test_one_registry_takes_it_once() -> None:
    shown = Shown()
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        EngineFamilies(
            shown.registry,
            model_name="x",
            from_log=lambda: None,
            log_counts=LogCounts(),
            succeeded_at=lambda: None,
            clock=lambda: 0.0,
        )


def test_how_much_of_the_log_was_read() -> None:
    shown = Shown()
    assert shown.registry.get_sample_value("wings_engine_log_lines_total") == 5.0
    assert shown.registry.get_sample_value("wings_engine_log_dropped_bytes_total") == 7.0
