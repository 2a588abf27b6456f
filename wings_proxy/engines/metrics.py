"""The same few numbers for every engine, out of what each calls its own. Pure.

Names by version: vLLM 0.8.5 to 0.32.0, SGLang 0.5.23, llama.cpp b11549 (and, where it says so, older ones).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from wings_proxy.engines.exposition import Sample

# More than any engine can count in its life; beyond it somebody is playing with us.
_LARGEST: Final = 1e18


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What an engine says of itself at one moment; None where it does not say."""

    running: float | None = None
    """Requests being generated."""
    waiting: float | None = None
    """Requests queued in the engine."""
    kv_cache_usage: float | None = None
    """0 to 1; the mean over data-parallel ranks."""
    prefix_cache_hit_ratio: float | None = None
    """Prompt tokens found in the cache, of all, since the engine started; 0 to 1."""
    prompt_tokens: float | None = None
    """Total since the engine started, those found in the cache included."""
    generation_tokens: float | None = None
    """Total since the engine started."""
    progress: float | None = None
    """Changes whenever the engine does work; means nothing else. Of every token and step counter, and of the cache's
    fill, since a long prompt in pieces moves no counter before its last piece."""
    prompt_tokens_per_second: float | None = None
    """Where the engine says so itself."""
    generation_tokens_per_second: float | None = None


NOTHING: Final = EngineSample()


class Families:
    """The samples of a page by name. A sample that is not finite, or negative, is as good as none."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if math.isfinite(sample.value) and 0 <= sample.value <= _LARGEST:
                self._samples[sample.name].append(sample)

    def total(self, *names: str) -> float | None:
        """Return the sum over all labels of the first family of *names* that is there."""
        for name in names:
            if found := self._samples.get(name):
                return math.fsum(sample.value for sample in found)
        return None

    def ranks(self, name: str, label: str) -> list[float]:
        """Return one value for each value of *label*, the largest: the others are the same thing told again."""
        by_rank: dict[str, float] = {}
        for sample in self._samples.get(name, ()):
            rank = sample.label(label)
            by_rank[rank] = max(sample.value, by_rank.get(rank, 0.0))
        return list(by_rank.values())

    def mean(self, *names: str) -> float | None:
        """Return the mean of a ratio over all labels, None if it is not one."""
        for name in names:
            if found := self._samples.get(name):
                return ratio(math.fsum(sample.value for sample in found), len(found))
        return None

    def moved(self, *names: str) -> float | None:
        """Return the sum of everything there is of *names*."""
        found = [total for name in names if (total := self.total(name)) is not None]
        return math.fsum(found) if found else None


def ratio(part: float | None, whole: float | None) -> float | None:
    """Return *part* of *whole*, None if that is not between 0 and 1 or one of them is not known."""
    if part is None or not whole or part > whole:
        return None
    return part / whole


@dataclass(frozen=True, slots=True)
class MetricsDialect:
    """What an engine calls its numbers."""

    read: Callable[[Families], EngineSample]
    # The names of the samples that `read` asks for; no others are kept.
    names: frozenset[str]


def _sum(*parts: float | None) -> float | None:
    return None if parts[0] is None else math.fsum(part or 0.0 for part in parts)


_VLLM_PROGRESS: Final = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:num_preemptions_total",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
)


def _vllm(families: Families) -> EngineSample:
    # With data parallelism each family comes once for each engine="N".
    hits = families.total("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
    queries = families.total("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
    return EngineSample(
        running=families.total("vllm:num_requests_running"),
        waiting=families.total("vllm:num_requests_waiting"),
        # The second up to 0.9; 0.9.2 and 0.10 have both.
        kv_cache_usage=families.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        # The engine before V1 has the ratio only, -1 as long as nothing was looked up.
        prefix_cache_hit_ratio=families.mean("vllm:gpu_prefix_cache_hit_rate")
        if queries is None
        else ratio(hits, queries),
        prompt_tokens=families.total("vllm:prompt_tokens_total"),
        generation_tokens=families.total("vllm:generation_tokens_total"),
        progress=families.moved(*_VLLM_PROGRESS),
    )


_SGLANG_PROGRESS: Final = (
    "sglang:prompt_tokens_total",
    "sglang:generation_tokens_total",
    # Those of a request that has not ended yet are only here.
    "sglang:realtime_tokens_total",
    "sglang:prefill_effective_tokens_total",
    "sglang:num_used_tokens",
)


def _sglang(families: Families) -> EngineSample:
    def over_ranks(name: str) -> float | None:
        # With metrics of all schedulers every tensor-parallel rank tells its data-parallel rank's numbers.
        values = families.ranks(name, "dp_rank")
        return math.fsum(values) if values else None

    usage = families.ranks("sglang:token_usage", "dp_rank")
    prompt = families.total("sglang:prompt_tokens_total")
    return EngineSample(
        running=over_ranks("sglang:num_running_reqs"),
        waiting=over_ranks("sglang:num_queue_reqs"),
        kv_cache_usage=ratio(math.fsum(usage), len(usage)),
        prefix_cache_hit_ratio=ratio(families.total("sglang:cached_tokens_total"), prompt),
        prompt_tokens=prompt,
        generation_tokens=families.total("sglang:generation_tokens_total"),
        progress=families.moved(*_SGLANG_PROGRESS),
        # Its counters move when a request ends, this as it goes on.
        generation_tokens_per_second=over_ranks("sglang:gen_throughput"),
    )


_LLAMACPP_PROGRESS: Final = (
    "llamacpp:prompt_tokens_total",
    "llamacpp:tokens_predicted_total",
    "llamacpp:n_decode_total",
)


def _llamacpp(families: Families) -> EngineSample:
    # Its own total leaves out what came from the cache; the other engines' do not.
    cached = families.total("llamacpp:prompt_tokens_cached_total")
    prompt = _sum(families.total("llamacpp:prompt_tokens_total"), cached)
    return EngineSample(
        running=families.total("llamacpp:requests_processing"),
        waiting=families.total("llamacpp:requests_deferred"),
        # Builds up to 2025.
        kv_cache_usage=families.mean("llamacpp:kv_cache_usage_ratio"),
        prefix_cache_hit_ratio=ratio(cached, prompt),
        prompt_tokens=prompt,
        generation_tokens=families.total("llamacpp:tokens_predicted_total"),
        progress=families.moved(*_LLAMACPP_PROGRESS),
    )


VLLM: Final = MetricsDialect(
    _vllm,
    frozenset(
        {
            *_VLLM_PROGRESS,
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_hit_rate",
        }
    ),
)
SGLANG: Final = MetricsDialect(
    _sglang,
    frozenset(
        {
            *_SGLANG_PROGRESS,
            "sglang:num_running_reqs",
            "sglang:num_queue_reqs",
            "sglang:token_usage",
            "sglang:cached_tokens_total",
            "sglang:gen_throughput",
        }
    ),
)
LLAMACPP: Final = MetricsDialect(
    _llamacpp,
    frozenset(
        {
            *_LLAMACPP_PROGRESS,
            "llamacpp:prompt_tokens_cached_total",
            "llamacpp:requests_processing",
            "llamacpp:requests_deferred",
            "llamacpp:kv_cache_usage_ratio",
        }
    ),
)


def normalise(dialect: MetricsDialect, samples: Iterable[Sample]) -> EngineSample:
    """Return what *samples* of the engine's page say."""
    return dialect.read(Families(samples))


# Over less a rate says more of the engine's bookkeeping than of its speed.
_SHORTEST: Final = 1.0
_USUAL: Final = 5.0
# A rate over longer is an average of times nobody asks about any more.
_LONGEST: Final = 300.0


class Rates:
    """Tokens a second out of totals: over the last five seconds, or since the sample before if that is longer ago.

    A total that went down began again at zero, as the engine's restart makes it.
    """

    def __init__(self) -> None:
        self._samples: list[tuple[float, float | None, float | None]] = []

    def forget(self) -> None:
        """Begin anew: what comes next is of another run."""
        self._samples.clear()

    def see(self, now: float, sample: EngineSample) -> tuple[float | None, float | None]:
        """Return prompt and generation tokens a second as of *sample*, taken at monotonic time *now*."""
        kept = [each for each in self._samples if now - each[0] <= _LONGEST]
        old = sum(now - each[0] >= _USUAL for each in kept)
        # Of the old ones only the newest can be of use again.
        self._samples = kept = kept[max(0, old - 1) :]
        first = kept[0] if kept else None
        if not kept or now - kept[-1][0] >= _SHORTEST:
            # However often somebody asks, a handful is kept.
            kept.append((now, sample.prompt_tokens, sample.generation_tokens))
        if first is None or now - first[0] < _SHORTEST:
            return None, None
        then, prompt, generation = first
        return _rate(prompt, sample.prompt_tokens, now - then), _rate(generation, sample.generation_tokens, now - then)


def _rate(before: float | None, after: float | None, elapsed: float) -> float | None:
    if before is None or after is None:
        return None
    return (after if after < before else after - before) / elapsed
