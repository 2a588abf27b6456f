"""Every engine's own names, as one set of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from wings_proxy.engines.exposition import Exposition
from wings_proxy.engines.metrics import LLAMACPP, SGLANG, VLLM, EngineSample, Rates, normalise

DATA = Path(__file__).parent.parent / "data"
DIALECTS = {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMACPP}


def sample_of(engine: str, page: str) -> EngineSample:
    exposition = Exposition(f"{engine}:", DIALECTS[engine].names)
    exposition.feed(page.encode())
    exposition.end()
    assert exposition.dropped == 0
    return normalise(DIALECTS[engine], exposition.samples)


def captured(engine: str, version: str, name: str) -> EngineSample:
    text = (DATA / version / name).read_text("utf-8")
    return sample_of(engine, text.partition("\n\n")[2])


def test_vllm_as_captured() -> None:
    assert captured("vllm", "vllm-0.32.0", "get_metrics_after.http") == EngineSample(
        running=0.0,
        waiting=0.0,
        kv_cache_usage=0.0,
        prefix_cache_hit_ratio=0.0,
        prompt_tokens=414.0,
        generation_tokens=613.0,
        progress=414.0 + 613.0 + 609.0,
    )


def test_llamacpp_as_captured() -> None:
    assert captured("llamacpp", "llamacpp-b11549", "get_metrics_after.http") == EngineSample(
        running=0.0,
        waiting=0.0,
        prefix_cache_hit_ratio=857 / 1265,
        prompt_tokens=1265.0,
        generation_tokens=1182.0,
        progress=408.0 + 1182.0 + 541.0,
    )


def test_sglang_as_captured() -> None:
    assert captured("sglang", "sglang-0.5.23", "get_metrics_after.http") == EngineSample(
        running=0.0,
        waiting=0.0,
        kv_cache_usage=0.0,
        prefix_cache_hit_ratio=798 / 905,
        prompt_tokens=905.0,
        generation_tokens=2134.0,
        progress=905.0 + 2134.0 + 3002.0 + 908.0,
        generation_tokens_per_second=0.0,
    )


def test_data_parallel_ranks_of_vllm_are_one_engine() -> None:
    page = """\
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:num_requests_waiting{engine="0"} 1
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 1.0
vllm:prefix_cache_queries_total{engine="0"} 30
vllm:prefix_cache_queries_total{engine="1"} 10
vllm:prefix_cache_hits_total{engine="0"} 10
vllm:prefix_cache_hits_total{engine="1"} 0
vllm:generation_tokens_total{engine="0"} 100
vllm:generation_tokens_total{engine="1"} 50
"""
    assert sample_of("vllm", page) == EngineSample(
        running=7.0,
        waiting=1.0,
        kv_cache_usage=0.75,
        prefix_cache_hit_ratio=0.25,
        generation_tokens=150.0,
        progress=151.5,
    )


@pytest.mark.parametrize(
    ("page", "usage", "hits"),
    [
        # 0.8.5 with the V1 engine.
        (
            """\
vllm:gpu_cache_usage_perc 0.25
vllm:gpu_prefix_cache_queries_total 8
vllm:gpu_prefix_cache_hits_total 2
""",
            0.25,
            0.25,
        ),
        # With V0: a ratio, -1 while nothing was looked up.
        ("vllm:gpu_cache_usage_perc 0.25\nvllm:gpu_prefix_cache_hit_rate -1\n", 0.25, None),
        ("vllm:gpu_cache_usage_perc 0.25\nvllm:gpu_prefix_cache_hit_rate 0.5\n", 0.25, 0.5),
        # 0.9.2 and 0.10 have the old names and the new.
        (
            """\
vllm:gpu_cache_usage_perc 0.25
vllm:kv_cache_usage_perc 0.25
vllm:prefix_cache_queries_total 4
vllm:prefix_cache_hits_total 3
vllm:gpu_prefix_cache_queries_total 4
vllm:gpu_prefix_cache_hits_total 3
""",
            0.25,
            0.75,
        ),
    ],
)
def test_names_of_older_vllm(page: str, usage: float, hits: float | None) -> None:
    sample = sample_of("vllm", page)
    assert (sample.kv_cache_usage, sample.prefix_cache_hit_ratio) == (usage, hits)


def test_ranks_of_sglang_that_tell_the_same_twice_are_counted_once() -> None:
    page = """\
sglang:num_running_reqs{tp_rank="0",dp_rank="0"} 3
sglang:num_running_reqs{tp_rank="1",dp_rank="0"} 3
sglang:num_running_reqs{tp_rank="2",dp_rank="1"} 4
sglang:token_usage{tp_rank="0",dp_rank="0"} 0.5
sglang:token_usage{tp_rank="1",dp_rank="0"} 0.5
sglang:token_usage{tp_rank="2",dp_rank="1"} 1.0
sglang:gen_throughput{tp_rank="0",dp_rank="0"} 10
sglang:gen_throughput{tp_rank="2",dp_rank="1"} 20
"""
    sample = sample_of("sglang", page)
    assert sample.running == 7.0
    assert sample.kv_cache_usage == 0.75
    assert sample.generation_tokens_per_second == 30.0
    assert sample.waiting is None


def test_what_an_engine_does_not_say_is_none() -> None:
    assert sample_of("vllm", "") == sample_of("sglang", "") == sample_of("llamacpp", "") == EngineSample()
    assert sample_of("llamacpp", "llamacpp:prompt_tokens_total 5\n").prompt_tokens == 5.0


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1e300"])
def test_what_cannot_be_is_not_shown(value: str) -> None:
    names = ("num_requests_running", "kv_cache_usage_perc", "generation_tokens_total")
    assert sample_of("vllm", "".join(f"vllm:{name} {value}\n" for name in names)) == EngineSample()


def test_a_ratio_is_at_most_one() -> None:
    page = "vllm:kv_cache_usage_perc 85\nvllm:prefix_cache_queries_total 1\nvllm:prefix_cache_hits_total 2\n"
    sample = sample_of("vllm", page)
    assert (sample.kv_cache_usage, sample.prefix_cache_hit_ratio) == (None, None)


# -- rates -------------------------------------------------------------------------------------------------------------


def totals(prompt: float | None, generation: float | None) -> EngineSample:
    return EngineSample(prompt_tokens=prompt, generation_tokens=generation)


def test_a_rate_needs_two_samples() -> None:
    rates = Rates()
    assert rates.see(100.0, totals(10, 100)) == (None, None)
    assert rates.see(110.0, totals(30, 400)) == (2.0, 30.0)


def test_a_rate_is_over_five_seconds_however_often_somebody_asks() -> None:
    rates = Rates()
    for tenth in range(1000):
        prompt, generation = rates.see(tenth / 10, totals(tenth, tenth * 2))
        if tenth < 10:
            assert (prompt, generation) == (None, None)
        else:
            assert prompt == pytest.approx(10.0)
            assert generation == pytest.approx(20.0)
        assert len(rates._samples) <= 8
    # Now nothing more: half of it is seen after about half the time.
    (_, generation) = rates.see(102.4, totals(999, 1998))
    assert generation is not None
    assert 8 <= generation <= 14


def test_a_total_that_began_again_makes_no_negative_rate() -> None:
    rates = Rates()
    rates.see(0.0, totals(1000, 1000))
    assert rates.see(10.0, totals(50, 1500)) == (5.0, 50.0)


def test_what_is_not_there_has_no_rate() -> None:
    rates = Rates()
    rates.see(0.0, totals(None, 5))
    assert rates.see(10.0, totals(5, None)) == (None, None)


def test_what_was_long_ago_is_forgotten() -> None:
    rates = Rates()
    rates.see(0.0, totals(0, 0))
    assert rates.see(301.0, totals(10, 10)) == (None, None)
    assert rates.see(302.0, totals(20, 10)) == (10.0, 0.0)


def test_another_run_begins_anew() -> None:
    rates = Rates()
    rates.see(0.0, totals(0, 0))
    rates.forget()
    assert rates.see(10.0, totals(10, 10)) == (None, None)
