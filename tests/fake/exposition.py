"""The `/metrics` page of each engine: the families that clients of the engines read, with live values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.fake.counters import Counters, Histogram
from tests.fake.settings import Flavour

Labels = Mapping[str, str]
Sample = tuple[Labels, float]
# Creation time of every counter, which prometheus_client shows next to it.
_CREATED = 1.795373325e09


def page(flavour: Flavour, counters: Counters, model: str, adapters: Iterable[str] = ()) -> bytes:
    """Return the exposition, text format 0.0.4; with *adapters* as vLLM's with `--enable-lora`, these in use."""
    families = {Flavour.VLLM: _vllm, Flavour.SGLANG: _sglang, Flavour.LLAMACPP: _llamacpp}[flavour]
    return "".join([*families(counters, model), *_adapters(adapters)]).encode()


def _adapters(names: Iterable[str]) -> Iterable[str]:
    if running := ",".join(names):
        labels = {"max_lora": "4", "running_lora_adapters": running, "waiting_lora_adapters": ""}
        # Its value is the time.
        yield _family("vllm:lora_requests_info", "gauge", "Running stats on lora requests.", (labels, _CREATED))


def _family(name: str, kind: str, text: str, *samples: Sample, created: bool = False) -> str:
    lines = [f"# HELP {name} {text}\n# TYPE {name} {kind}\n"]
    lines += [f"{name}{_labels(labels)} {value!r}\n" for labels, value in samples]
    if created:
        base = name.removesuffix("_total")
        lines.append(f"# HELP {base}_created {text}\n# TYPE {base}_created gauge\n")
        lines += [f"{base}_created{_labels(labels)} {_CREATED!r}\n" for labels, _ in samples]
    return "".join(lines)


def _histogram(name: str, text: str, labels: Labels, histogram: Histogram) -> str:
    counts = histogram.counts or [0] * len(histogram.bounds)
    bounds = [repr(bound) for bound in histogram.bounds] + ["+Inf"]
    rows = zip(bounds, [*counts, histogram.count], strict=True)
    buckets = [f"{name}_bucket{_labels({**labels, 'le': bound})} {float(count)!r}\n" for bound, count in rows]
    tail = [f"{name}_count{_labels(labels)} {float(histogram.count)!r}\n", f"{name}_sum{_labels(labels)} "]
    return f"# HELP {name} {text}\n# TYPE {name} histogram\n" + "".join([*buckets, *tail]) + f"{histogram.total!r}\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


def _vllm(c: Counters, model: str) -> Iterable[str]:
    own = {"engine": "0", "model_name": model}
    finished = ("stop", "length", "abort", "error", "repetition")
    yield _family("python_info", "gauge", "Python platform information", ({"implementation": "CPython"}, 1.0))
    yield _family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", ({}, 6.4e8))
    yield _family(
        "vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", (own, float(c.running))
    )
    yield _family(
        "vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", (own, float(c.waiting))
    )
    yield _family(
        "vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", (own, c.cache_ratio)
    )
    for name, value, text in (
        ("prefix_cache_queries", c.prefix_queries, "Prefix cache queries, in terms of number of queried tokens."),
        ("prefix_cache_hits", c.prefix_hits, "Prefix cache hits, in terms of number of cached tokens."),
        ("num_preemptions", 0, "Cumulative number of preemption from the engine."),
        ("prompt_tokens", c.prompt_tokens, "Number of prefill tokens processed."),
        ("generation_tokens", c.generation_tokens, "Number of generation tokens processed."),
    ):
        yield _family(f"vllm:{name}_total", "counter", text, (own, float(value)), created=True)
    yield _family(
        "vllm:request_success_total",
        "counter",
        "Count of successfully processed requests.",
        # Aborts are not counted here (measured).
        *(
            ({**own, "finished_reason": why}, float(c.finished.get(why, 0) if why != "abort" else 0))
            for why in finished
        ),
        created=True,
    )
    yield _histogram(
        "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", own, c.first_token
    )
    yield _histogram(
        "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", own, c.between_tokens
    )
    yield _histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", own, c.whole)
    yield _family(
        "http_requests_total",
        "counter",
        "Total number of requests by method, status and handler.",
        *(
            ({"handler": path, "method": method, "status": f"{status // 100}xx"}, float(count))
            for (path, method, status), count in c.http.items()
        ),
    )


def _sglang(c: Counters, model: str) -> Iterable[str]:
    own = {"engine_type": "unified", "model_name": model, "moe_ep_rank": "0", "pp_rank": "0", "tp_rank": "0"}
    api = {"engine_type": "unified", "model_name": model}
    for name, value, text in (
        ("num_running_reqs", float(c.running), "The number of running requests."),
        ("num_used_tokens", float(c.cached_tokens), "The number of used tokens."),
        ("token_usage", round(c.cache_ratio, 4), "The token usage."),
        ("gen_throughput", 0.0, "The generation throughput (token/s)."),
        ("num_queue_reqs", float(c.waiting), "The number of requests in the waiting queue."),
        ("cache_hit_rate", c.prefix_hits / max(1, c.prefix_queries), "The prefix cache hit rate."),
        ("max_total_num_tokens", float(c.cache_tokens), "Maximum total number of tokens in the KV cache pool."),
    ):
        yield _family(f"sglang:{name}", "gauge", text, (own, value))
    for name, count, text in (
        ("prompt_tokens", c.prompt_tokens, "Number of prefill tokens processed."),
        ("generation_tokens", c.generation_tokens, "Number of generation tokens processed."),
        ("num_requests", sum(c.finished.values()), "Number of requests processed."),
    ):
        labels = {**api, "is_streaming": "true"}
        yield _family(f"sglang:{name}_total", "counter", text, (labels, float(count)))
    yield _family(
        "sglang:num_aborted_requests_total", "counter", "Number of requests aborted.", (api, float(c.aborted))
    )
    yield _histogram(
        "sglang:time_to_first_token_seconds", "Histogram of time to first token in seconds.", api, c.first_token
    )
    yield _histogram(
        "sglang:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", api, c.between_tokens
    )
    yield _histogram(
        "sglang:e2e_request_latency_seconds", "Histogram of End-to-end request latency in seconds", api, c.whole
    )


def _llamacpp(c: Counters, _model: str) -> Iterable[str]:
    for name, kind, value, text in (
        (
            "prompt_tokens_total",
            "counter",
            c.prompt_tokens,
            "Number of prompt tokens processed, excluding cached tokens",
        ),
        ("prompt_tokens_cached_total", "counter", c.prefix_hits, "Number of prompt tokens reused from the cache"),
        ("prompt_seconds_total", "counter", round(c.first_token.total, 4), "Total time spent processing prompts"),
        ("tokens_predicted_total", "counter", c.generation_tokens, "Number of generation tokens processed"),
        ("tokens_predicted_seconds_total", "counter", round(c.whole.total, 4), "Total time spent generating tokens"),
        ("n_decode_total", "counter", c.steps, "Total number of llama_decode() calls"),
        ("prompt_tokens_seconds", "gauge", 0, "Average prompt throughput in tokens/s"),
        ("predicted_tokens_seconds", "gauge", 0, "Average generation throughput in tokens/s"),
        ("requests_processing", "gauge", c.running, "Number of requests processing"),
        ("requests_deferred", "gauge", c.waiting, "Number of requests deferred"),
        ("n_busy_slots_per_decode", "gauge", 0, "Average number of busy slots per llama_decode() call"),
    ):
        yield _family(f"llamacpp:{name}", kind, text, ({}, value))
