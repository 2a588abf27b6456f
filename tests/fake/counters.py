"""What the engine counts: the source of its metrics and of its statistics line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Histogram:
    """A Prometheus histogram with the bounds given."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    count: int = 0

    def observe(self, value: float) -> None:
        self.counts = self.counts or [0] * len(self.bounds)
        for index, bound in enumerate(self.bounds):
            self.counts[index] += value <= bound
        self.total += value
        self.count += 1


_LATENCY = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0)


@dataclass(slots=True)
class Counters:
    """Gauges of now and counters since the start."""

    running: int = 0
    waiting: int = 0
    # Tokens held by running generations, and by how many the cache is full.
    cached_tokens: int = 0
    cache_tokens: int = 65_536
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    aborted: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    http: dict[tuple[str, str, int], int] = field(default_factory=dict)
    first_token: Histogram = field(default_factory=lambda: Histogram(_LATENCY))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(_LATENCY))
    whole: Histogram = field(default_factory=lambda: Histogram(_LATENCY))

    @property
    def cache_ratio(self) -> float:
        return min(1.0, self.cached_tokens / self.cache_tokens)
