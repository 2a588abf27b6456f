"""The engine's numbers on our page: `wings_engine_*`, one set of names for every engine, and how they were come by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wings_proxy.engines.metrics import NOTHING, EngineSample, Rates
from wings_proxy.lifecycle.engine_log import LogCounts
from wings_proxy.telemetry.engine_scrape import EnginePage, ScrapeOutcome

_LABELS: Final = ("model_name", "source")


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What is shown of the engine at one moment, and where it comes from."""

    sample: EngineSample
    prompt_tokens_per_second: float | None
    generation_tokens_per_second: float | None
    source: str
    """`metrics` or `log`."""

    def by_name(self) -> Mapping[str, float | None]:
        """Return the figures by name."""
        return {
            "running": self.sample.running,
            "waiting": self.sample.waiting,
            "kv_cache_usage": self.sample.kv_cache_usage,
            "prefix_cache_hit_ratio": self.sample.prefix_cache_hit_ratio,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "generation_tokens_per_second": self.generation_tokens_per_second,
        }


class EngineFamilies(Collector):
    """Shows what the newest fetch brought; what it did not bring is not there."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        model_name: str,
        from_log: Callable[[], EngineSample | None],
        log_counts: LogCounts,
        succeeded_at: Callable[[], float | None],
        clock: Callable[[], float],
    ) -> None:
        """*from_log* tells what the engine's log says of now, and is asked where the engine has no metrics."""
        self._model_name = model_name
        self._from_log = from_log
        self._log_counts = log_counts
        self._succeeded_at = succeeded_at
        self._clock = clock
        self._rates = Rates()
        self._epoch: int | None = None
        self._page = EnginePage(ScrapeOutcome.IDLE)
        self._figures: EngineFigures | None = None
        self._dropped_lines = 0
        registry.register(self)

    def show(self, page: EnginePage) -> EngineFigures | None:
        """Take the newest fetch; the same one may come again. Return what there is to show of the engine."""
        if page is self._page:
            return self._figures
        self._page = page
        self._dropped_lines += page.dropped_lines
        if page.outcome is ScrapeOutcome.OK:
            if page.epoch != self._epoch:
                self._rates.forget()
                self._epoch = page.epoch
            prompt, generation = self._rates.see(page.at, page.sample)
            self._figures = EngineFigures(
                page.sample,
                _first(page.sample.prompt_tokens_per_second, prompt),
                _first(page.sample.generation_tokens_per_second, generation),
                "metrics",
            )
        elif page.outcome is ScrapeOutcome.OFF and (said := self._from_log()) is not None:
            # Only here: what a prompt may have put into the log never counts beside what the engine says itself.
            self._figures = EngineFigures(said, said.prompt_tokens_per_second, said.generation_tokens_per_second, "log")
        else:
            self._figures = None
        return self._figures

    def describe(self) -> Iterator[Metric]:
        """Return the families, so that a registry notices a clash of names."""
        yield from self._always(EnginePage(ScrapeOutcome.OK), 0.0)
        yield from self._of_the_engine(EngineFigures(NOTHING, None, None, "metrics"))

    def collect(self) -> Iterator[Metric]:
        """Return the families as of now; a figure that nobody told is not there."""
        yield from self._always(self._page, self._succeeded_at())
        if self._figures is not None:
            yield from (family for family in self._of_the_engine(self._figures) if family.samples)

    def _always(self, page: EnginePage, succeeded_at: float | None) -> Iterator[Metric]:
        if page.outcome in (ScrapeOutcome.OK, ScrapeOutcome.FAILED):
            yield GaugeMetricFamily(
                "wings_engine_scrape_success",
                "1 if the engine's own metrics are on this page, 0 if they should be; absent while none are expected.",
                value=page.outcome is ScrapeOutcome.OK,
            )
            yield GaugeMetricFamily(
                "wings_engine_scrape_duration_seconds", "Time the engine's page took.", value=page.seconds
            )
        if succeeded_at is not None:
            yield GaugeMetricFamily(
                "wings_engine_scrape_age_seconds",
                "Time since the engine's metrics could last be read.",
                value=max(0.0, self._clock() - succeeded_at),
            )
        yield CounterMetricFamily(
            "wings_engine_scrape_dropped_lines",
            "Lines of the engine's page left out, since they would have made this page unreadable.",
            value=self._dropped_lines,
        )
        yield CounterMetricFamily(
            "wings_engine_log_lines", "Lines of the engine's log that were read.", value=self._log_counts.lines
        )
        yield CounterMetricFamily(
            "wings_engine_log_dropped_bytes",
            "Bytes of the engine's log that were passed over: too many at once, or a line too long.",
            value=self._log_counts.dropped_bytes,
        )

    def _of_the_engine(self, figures: EngineFigures) -> Iterator[Metric]:
        sample = figures.sample
        for name, text, value in (
            ("wings_engine_requests_running", "Requests the engine generates for.", sample.running),
            ("wings_engine_requests_waiting", "Requests queued in the engine.", sample.waiting),
            (
                "wings_engine_kv_cache_usage_ratio",
                "How full the KV cache is, 0 to 1; the mean over data-parallel ranks.",
                sample.kv_cache_usage,
            ),
            (
                "wings_engine_prefix_cache_hit_ratio",
                "Prompt tokens found in the prefix cache, of all, since the engine started (from a log: as it says).",
                sample.prefix_cache_hit_ratio,
            ),
            (
                "wings_engine_prompt_tokens_per_second",
                "Prompt tokens processed, over the last seconds.",
                figures.prompt_tokens_per_second,
            ),
            (
                "wings_engine_generation_tokens_per_second",
                "Tokens generated, over the last seconds.",
                figures.generation_tokens_per_second,
            ),
        ):
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            if value is not None:
                gauge.add_metric([self._model_name, figures.source], value)
            yield gauge
        for name, text, value in (
            ("wings_engine_prompt_tokens", "Prompt tokens, cached ones included.", sample.prompt_tokens),
            ("wings_engine_generation_tokens", "Tokens generated.", sample.generation_tokens),
        ):
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            if value is not None:
                counter.add_metric([self._model_name, figures.source], value)
            yield counter


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
