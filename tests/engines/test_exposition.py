"""What passes through of an engine's page, and what never does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from wings_proxy.engines.exposition import Exposition, Sample
from wings_proxy.engines.metrics import VLLM, EngineSample, normalise

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests \\\\ in a \\n batch, \xe4\xb8\xad.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a\\"b\\\\c\\nd,}"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4
# TYPE vllm:seconds histogram
vllm:seconds_bucket{le="0.5"} 1
vllm:seconds_bucket{le="+Inf"} 2
vllm:seconds_sum 1e-05
vllm:seconds_count 2
vllm:strange{} NaN
vllm:endless -Inf
vllm:largest 1.7976931348623157e308
vllm:nearly_none 1e-999
"""
FOREIGN = b"""\
# HELP wings_engine_state Not yours to say.
# TYPE wings_engine_state gauge
wings_engine_state{state="ready"} 7
python_info{version="3"} 1
# a comment, vllm: in it

# EOF
"""


def read(page: bytes, *wanted: str, piece: int = 1 << 20) -> Exposition:
    exposition = Exposition("vllm:", frozenset(wanted))
    for begin in range(0, len(page), piece):
        exposition.feed(page[begin : begin + piece])
    exposition.end()
    return exposition


def test_the_engines_families_pass_as_they_are_and_no_others() -> None:
    exposition = read(FOREIGN + PAGE + FOREIGN)
    assert exposition.text == PAGE
    assert exposition.dropped == 0
    assert exposition.samples == []


# As vLLM's `PrometheusStatLogger` makes them with --enable-lora: adapters' names joined by commas, the time as value,
# and one series for each set of adapters there ever was; a gateway takes the newest.
ADAPTERS = """\
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1.7953733251234567e+09
vllm:lora_requests_info{max_lora="4",running_lora_adapters="sql,org/中文",waiting_lora_adapters="a{b}=\\"c"} 1.795e+09
""".encode()


def test_adapters_names_pass_as_the_gateway_reads_them() -> None:
    exposition = read(ADAPTERS)
    assert (exposition.text, exposition.dropped) == (ADAPTERS, 0)
    (family,) = parse(ADAPTERS.decode())
    assert [sample.labels["running_lora_adapters"] for sample in family.samples] == ["", "sql,org/中文"]


@pytest.mark.parametrize(
    ("version", "prefix", "names"),
    [
        (
            "vllm-0.32.0",
            "vllm:",
            ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc", "cache_config_info"),
        ),
        ("sglang-0.5.23", "sglang:", ("num_queue_reqs", "num_running_reqs", "token_usage")),
    ],
)
def test_what_an_inference_gateway_asks_for_passes_from_a_captured_page(
    version: str, prefix: str, names: tuple[str, ...]
) -> None:
    """The names of its model-server protocol, with the labels it reads."""
    captured = Path(__file__).parent.parent / "data" / version / "get_metrics_after.http"
    exposition = Exposition(prefix, frozenset())
    exposition.feed(captured.read_bytes().partition(b"\r\n\r\n")[2])
    exposition.end()
    families = {family.name: family for family in parse(exposition.text.decode())}
    assert [name for name in names if not families[prefix + name].samples] == []
    if "cache_config_info" in names:
        (sample,) = families["vllm:cache_config_info"].samples
        assert (sample.labels["block_size"], sample.labels["num_gpu_blocks"]) == ("128", "8192")


def test_adapters_names_reach_none_of_our_own_families() -> None:
    sample = normalise(VLLM, read(ADAPTERS + PAGE, *VLLM.names).samples)
    assert sample == EngineSample(running=7.0)


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_the_pieces_it_comes_in_make_no_difference(piece: int) -> None:
    assert read(PAGE, piece=piece).text == PAGE


def test_a_last_line_without_an_end_counts_too() -> None:
    assert read(b"vllm:a 1").text == b"vllm:a 1\n"


@pytest.mark.parametrize("stamp", ["1700000000000", "-1", "0", "999999999999999"])
def test_a_sample_goes_without_its_timestamp(stamp: str) -> None:
    """One in the future and Prometheus refuses the series until then; one in the past and it refuses this sample."""
    exposition = read(f'vllm:a{{x="1"}} 4 {stamp}\nvllm:b\t5 \t{stamp}\n'.encode(), "vllm:a")
    assert exposition.text == b'vllm:a{x="1"} 4\nvllm:b\t5\n'
    assert (exposition.dropped, exposition.samples) == (0, [Sample("vllm:a", b'x="1"', 4.0)])


def test_no_page_makes_series_without_bound() -> None:
    page = b"".join(b'vllm:a{x="%d"} 1\n' % number for number in range(65_540))
    exposition = read(page)
    assert exposition.text == b"".join(page.splitlines(keepends=True)[:65_536])
    assert exposition.dropped == 4


def test_samples_of_the_families_asked_for() -> None:
    exposition = read(PAGE, "vllm:num_requests_running")
    first, second = exposition.samples
    assert (first.name, first.value, first.label("engine")) == ("vllm:num_requests_running", 3.0, "0")
    assert (second.value, second.label("model_name"), second.label("rank")) == (4.0, "m", "")
    assert Sample("x", b"", 1.0).label("engine") == ""


@pytest.mark.parametrize(
    "line",
    [
        b'vllm:a{x="1} 1',  # an open quote
        b'vllm:a{x="1"',
        b"vllm:a{x=1} 1",
        b'vllm:a{x="1"y="2"} 1',
        b'vllm:a{x="1",,} 1',
        b'vllm:a{="1"} 1',
        b'vllm:a{1x="1"} 1',
        b'vllm:a{x="\\t"} 1',  # an escape not every parser knows
        b'vllm:a{x="\xff"} 1',  # not UTF-8: Prometheus would refuse the whole page
        b'vllm:a{x="1",x="2"} 1',  # as it would for this
        b'vllm:a{__name__="wings_engine_state"} 1',
        b'vllm:a_bucket{le="many"} 1',
        b'vllm:a{quantile=""} 1',
        b"vllm:a",
        b"vllm:a ",
        b"vllm:a one",
        b"vllm:a 0x10",
        b"vllm:a 1_000",
        b"vllm:a 1e99999",
        b"vllm:a 1e999",  # more than a float64 holds: Prometheus would refuse the whole page
        b"vllm:a -" + b"9" * 400,
        b'vllm:a_bucket{le="1e999"} 1',
        b"vllm:a 1 2 3",
        b"vllm:a 1 1.5",
        b"vllm:a 1\r",
        b"vllm:a\x001 1",
        b'vllm:a 1 # {trace_id="x"} 1',
        b"vllm:\xc3\xa4 1",
        b"# TYPE vllm:a thermometer",
        b"# TYPE vllm:a",
        b"# TYPE vllm:a b gauge",
        b"# HELP vllm:a \xff",
        b"# HELP vllm:a \\t",
        b"# HELP vllm:\xc3\xa4 x",
    ],
)
def test_a_line_that_some_parser_would_refuse_goes_and_is_counted(line: bytes) -> None:
    exposition = read(b"vllm:before 1\n" + line + b"\nvllm:after 2\n", "vllm:a")
    assert exposition.text == b"vllm:before 1\nvllm:after 2\n"
    assert (exposition.dropped, exposition.samples) == (1, [])


def test_a_family_is_described_once_and_before_its_samples() -> None:
    page = (
        b"# TYPE vllm:a gauge\n# HELP vllm:a x\nvllm:a 1\n# TYPE vllm:a counter\n# HELP vllm:a y\n"
        b"vllm:b_sum 1\n# TYPE vllm:b summary\n"
    )
    exposition = read(page)
    assert exposition.text == b"# TYPE vllm:a gauge\n# HELP vllm:a x\nvllm:a 1\nvllm:b_sum 1\n"
    assert exposition.dropped == 3


@pytest.mark.parametrize("kind", [b"histogram", b"summary"])
def test_the_parts_of_a_histogram_are_no_families_of_their_own(kind: bytes) -> None:
    exposition = read(
        b"# TYPE vllm:a %b\n# TYPE vllm:a_count counter\n# HELP vllm:a_sum x\nvllm:a_count 1\n"
        b"# TYPE vllm:b gauge\n# TYPE vllm:b_count gauge\nvllm:b_count 1\n" % kind
    )
    assert exposition.text == (
        b"# TYPE vllm:a %b\nvllm:a_count 1\n# TYPE vllm:b gauge\n# TYPE vllm:b_count gauge\nvllm:b_count 1\n" % kind
    )
    assert exposition.dropped == 2


def test_a_series_comes_once_in_whatever_order_its_labels_are() -> None:
    exposition = read(b'vllm:a{x="1",y="2"} 1\nvllm:a{y="2",x="1"} 9\nvllm:a{x="2",y="1"} 3\n', "vllm:a")
    assert [sample.value for sample in exposition.samples] == [1.0, 3.0]
    assert exposition.dropped == 1


def test_a_line_without_an_end_is_not_kept() -> None:
    exposition = Exposition("vllm:", frozenset())
    for _ in range(1000):
        exposition.feed(b"vllm:" * 1000)
        assert len(exposition._rest) <= 64 * 1024 + 5000
    exposition.feed(b"\nvllm:a 1\n")
    assert (exposition.text, exposition.dropped) == (b"vllm:a 1\n", 1)


def test_a_long_line_that_comes_at_once_is_dropped_as_well() -> None:
    exposition = read(b'vllm:a{x="' + b"x" * 70_000 + b'"} 1\nvllm:b 1\n')
    assert (exposition.text, exposition.dropped) == (b"vllm:b 1\n", 1)


def test_no_family_is_read_without_bound() -> None:
    page = b"".join(b'vllm:a{x="%d"} 1\n' % number for number in range(5000))
    exposition = read(page, "vllm:a")
    assert len(exposition.samples) == 4096
    assert exposition.text == page


# Each of these makes an expression that tries again take a time that grows with the square, or worse.
@pytest.mark.parametrize(
    "line",
    [
        b"vllm:a{" + b'x="' * 20_000,
        b"vllm:a{" + b'x="\\"' * 12_000,
        b"vllm:a{" + b'""' * 30_000,
        b"vllm:a" + b"{" * 60_000,
        b"vllm:a" + b" " * 60_000 + b"x",
        b"vllm:a " + b"1" * 60_000 + b"x",
        b"vllm:" + b"a:" * 30_000,
        b"# HELP vllm:a " + b"\\\\" * 30_000 + b"\\",
        b'vllm:a{x="' + b"\\\\" * 30_000 + b"} 1",
        b"vllm:a{" + b",".join(b'x%d="1"' % number for number in range(6000)) + b",} x",
    ],
)
def test_no_line_takes_longer_than_its_length(line: bytes) -> None:
    # Quadratic, one of them would take minutes: the suite's own time-out is what fails then.
    for _ in range(20):
        assert read(line + b"\n").dropped == 1


@given(st.lists(st.sampled_from([*PAGE.splitlines(keepends=True), b"\n", b'"', b"{", b"}", b"\\", b"\xff", b" 1"])))
def test_whatever_passes_can_be_read(parts: list[bytes]) -> None:
    text = read(b"vllm:".join(parts)).text.decode("utf-8")
    assert all(family.name.startswith("vllm:") for family in parse(text))
