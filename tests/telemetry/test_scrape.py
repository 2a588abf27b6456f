"""`/metrics`: our own families always, the engine's with them, in the form the scraper asks for."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_classic
from pytest_aiohttp.plugin import AiohttpClient

from tests.telemetry.pages import Answer, hang, stand, whole
from wings_proxy.engines.metrics import EngineSample

DATA = Path(__file__).parent.parent / "data"
RUNNING = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3.0\n"
OPEN = "application/openmetrics-text; version=1.0.0"
nothing = whole(b"", "404 Not Found")


async def families(client: TestClient) -> dict[str, float]:  # type: ignore[type-arg]
    """The page's samples without labels, by name; of our own only those of the engine."""
    answer = await client.get("/metrics")
    assert answer.status == 200
    return {
        sample.name: sample.value
        for family in read_classic(await answer.text())
        for sample in family.samples
        if sample.name.startswith(("wings_engine_", "vllm:")) and "_log_" not in sample.name
    }


# -- the form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "text/html",
        "nonsense",
        "application/openmetrics-text;version=newest",
        "application/openmetrics-text; version=1.x",
        f"text/plain;version={'1' * 5000}",
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;q=0",
        "application/openmetrics-text;version=1.0.0;q=0.000,*/*",
        "application/openmetrics-text;q=0.3, text/plain;q=0.4",
        "application/openmetrics-text;q=1e9",
        "application/openmetrics-text;q=",
        "application/openmetrics-text;q=nan, text/plain;q=0.1",
        "application/openmetrics-text;version=1.0.0.<b>",
        "text/plain;version=",
    ],
)
async def test_the_classic_text_by_default(aiohttp_client: AiohttpClient, accept: str) -> None:
    async with stand(nothing) as made:
        client = await aiohttp_client(made.app())
        answer = await client.get("/metrics", headers={"Accept": accept})
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        (family,) = [f for f in read_classic(await answer.text()) if f.samples[0].name == "wings_things_total"]
        assert (family.samples[0].labels, family.samples[0].value) == ({"name": 'a"b\\c\n中'}, 2.0)


# The first is what Prometheus 3 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    "accept",
    [
        PROMETHEUS,
        "application/openmetrics-text",
        "text/plain, application/openmetrics-text",
        'text/plain;q=0.5, Application/OpenMetrics-Text; Version="1.0.0"; q=0.500',
        "*/*, application/openmetrics-text;q=0.1",
        "application/openmetrics-text;version=9.9, application/openmetrics-text;version=0.0.1;q=0.1",
    ],
)
async def test_openmetrics_for_who_likes_it_no_less(aiohttp_client: AiohttpClient, accept: str) -> None:
    async with stand(nothing) as made:
        client = await aiohttp_client(made.app())
        answer = await client.get("/metrics", headers={"Accept": accept})
        assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert (await answer.text()).endswith("# EOF\n")


async def test_a_preference_in_two_fields_is_one_list(aiohttp_client: AiohttpClient) -> None:
    async with stand(nothing) as made:
        client = await aiohttp_client(made.app())
        answer = await client.get("/metrics", headers=[("Accept", "text/plain;q=0.1"), ("Accept", OPEN)])
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")


async def test_openmetrics_when_asked_for_as_long_as_the_engine_has_no_part(aiohttp_client: AiohttpClient) -> None:
    async with stand(nothing) as made:
        client = await aiohttp_client(made.app())
        answer = await client.get("/metrics", headers={"Accept": OPEN})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        text = await answer.text()
        assert text.endswith("# EOF\n")
        names = [family.name for family in read_openmetrics(text)]  # type: ignore[no-untyped-call]
        assert "wings_things" in names
        # The engine's part is classic text, and a page is of one form.
        made.answer = whole(RUNNING)
        answer = await client.get("/metrics", headers={"Accept": OPEN})
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await answer.text()
        assert text.endswith(RUNNING.decode())
        assert "# EOF" not in text


async def test_head(aiohttp_client: AiohttpClient) -> None:
    async with stand(whole(RUNNING)) as made:
        client = await aiohttp_client(made.app())
        answer = await client.head("/metrics")
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("x-gzip", True),
        ("gzip;q=1.0", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*", True),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("gzip, *;q=0", True),
        ("gzip;q=2", False),
        ("gzip;q=0.0001", False),
        ("br, gzipped", False),
    ],
)
@pytest.mark.parametrize("lines", [50, 5000])
async def test_packed_for_those_who_take_it(
    aiohttp_client: AiohttpClient, accept: str, packed: bool, lines: int
) -> None:
    page = b"".join(b'vllm:a{number="%d"} 1\n' % number for number in range(lines))
    async with stand(whole(page)) as made:
        client = await aiohttp_client(made.app(), auto_decompress=False)
        answer = await client.get("/metrics", headers={"Accept-Encoding": accept})
        body = await answer.read()
        assert ("Content-Encoding" in answer.headers) is packed
        assert (gzip.decompress(body) if packed else body).endswith(page)
        assert answer.headers["Vary"] == "Accept, Accept-Encoding"


async def test_a_small_page_is_not_worth_it(aiohttp_client: AiohttpClient) -> None:
    async with stand(nothing) as made:
        client = await aiohttp_client(made.app(), auto_decompress=False)
        answer = await client.get("/metrics", headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in answer.headers


# -- the engine's part -------------------------------------------------------------------------------------------------


async def test_the_engines_numbers_under_both_names(aiohttp_client: AiohttpClient) -> None:
    async with stand(whole(RUNNING + b"wings_things_total 9\npython_info 1\n")) as made:
        client = await aiohttp_client(made.app())
        text = await (await client.get("/metrics")).text()
        assert 'wings_engine_requests_running{model_name="tiny",source="metrics"} 3.0\n' in text
        assert text.endswith(RUNNING.decode())
        assert "python_info" not in text
        assert text.count("wings_things_total{") == 1
        made.now = 107.0
        assert await families(client) == {
            "vllm:num_requests_running": 3.0,
            "wings_engine_requests_running": 3.0,
            "wings_engine_scrape_success": 1.0,
            "wings_engine_scrape_duration_seconds": 0.0,
            "wings_engine_scrape_age_seconds": 0.0,
            "wings_engine_scrape_dropped_lines_total": 0.0,
        }


async def test_rates_are_of_what_was_between_two_scrapes(aiohttp_client: AiohttpClient) -> None:
    async with stand(whole(b"vllm:generation_tokens_total 100\nvllm:prompt_tokens_total 10\n")) as made:
        client = await aiohttp_client(made.app())
        seen = await families(client)
        assert "wings_engine_generation_tokens_per_second" not in seen
        assert (seen["wings_engine_prompt_tokens_total"], seen["wings_engine_generation_tokens_total"]) == (10.0, 100.0)
        made.now += 10
        made.answer = whole(b"vllm:generation_tokens_total 400\nvllm:prompt_tokens_total 30\n")
        seen = await families(client)
        assert seen["wings_engine_generation_tokens_per_second"] == 30.0
        assert seen["wings_engine_prompt_tokens_per_second"] == 2.0
        # Another run, other counters: what was before says nothing of them.
        made.now += 10
        made.epoch += 1
        assert "wings_engine_generation_tokens_per_second" not in await families(client)


async def test_what_an_engine_says_of_its_speed_goes_before_what_its_totals_do(aiohttp_client: AiohttpClient) -> None:
    page = b"sglang:gen_throughput 12.5\nsglang:generation_tokens_total 5\n"
    async with stand(whole(page), engine="sglang") as made:
        client = await aiohttp_client(made.app())
        for _ in range(2):
            seen = await families(client)
            assert seen["wings_engine_generation_tokens_per_second"] == 12.5
            made.now += 10
        assert await made.page.figures() == {
            "running": None,
            "waiting": None,
            "kv_cache_usage": None,
            "prefix_cache_hit_ratio": None,
            "prompt_tokens_per_second": None,
            "generation_tokens_per_second": 12.5,
        }
        made.listening = False
        assert await made.page.figures() is None


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(RUNNING * 1000)
        await writer.drain()


@pytest.mark.parametrize("answer", [whole(b"", "500 x"), endless, hang])
async def test_whatever_the_engine_does_ours_is_served_and_nothing_of_it_stays(
    aiohttp_client: AiohttpClient, answer: Answer
) -> None:
    async with stand(whole(RUNNING), within=0.3 if answer is hang else 30.0) as made:
        client = await aiohttp_client(made.app())
        await families(client)
        made.answer = answer
        made.now += 30
        seen = await families(client)
        seen.pop("wings_engine_scrape_duration_seconds")
        assert seen == {
            "wings_engine_scrape_success": 0.0,
            "wings_engine_scrape_age_seconds": 30.0,
            "wings_engine_scrape_dropped_lines_total": 0.0,
        }
        # Nobody is expected to answer: no failure then, and no number.
        made.listening = False
        assert await families(client) == {
            "wings_engine_scrape_age_seconds": 30.0,
            "wings_engine_scrape_dropped_lines_total": 0.0,
        }


async def test_the_log_speaks_where_the_engine_has_no_metrics_and_only_there(aiohttp_client: AiohttpClient) -> None:
    async with stand(nothing) as made:
        made.said_in_log = EngineSample(running=7.0, generation_tokens_per_second=20.0)
        client = await aiohttp_client(made.app())
        text = await (await client.get("/metrics")).text()
        assert 'wings_engine_requests_running{model_name="tiny",source="log"} 7.0\n' in text
        assert 'wings_engine_generation_tokens_per_second{model_name="tiny",source="log"} 20.0\n' in text
        assert "wings_engine_scrape_success" not in text
        # A page that cannot be read is not a page that is not there.
        for answer in (whole(RUNNING), whole(b"", "500 x")):
            made.answer = answer
            assert 'source="log"' not in await (await client.get("/metrics")).text()


async def test_lines_that_would_spoil_the_page_are_counted_once_a_fetch(aiohttp_client: AiohttpClient) -> None:
    async with stand(whole(RUNNING + b'vllm:a{x="} 1\n')) as made:
        client = await aiohttp_client(made.app())
        for number in (1.0, 2.0):
            assert (await families(client))["wings_engine_scrape_dropped_lines_total"] == number


async def test_a_page_of_which_nothing_passes_is_a_failure_and_the_log_does_not_stand_in(
    aiohttp_client: AiohttpClient,
) -> None:
    async with stand(whole(b'vllm:a{x="} 1\n')) as made:
        made.said_in_log = EngineSample(running=7.0)
        client = await aiohttp_client(made.app())
        assert await families(client) == {
            "wings_engine_scrape_success": 0.0,
            "wings_engine_scrape_duration_seconds": 0.0,
            "wings_engine_scrape_dropped_lines_total": 1.0,
        }


async def test_scrapers_that_come_together_get_one_page(aiohttp_client: AiohttpClient) -> None:
    go = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await whole(RUNNING)(writer)

    async with stand(late) as made:
        client = await aiohttp_client(made.app())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(families(client)) for _ in range(5)]
            while not made.requests:  # noqa: ASYNC110 - the engine rings no bell
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            go.set()
        assert len(made.requests) == 1
        assert all(task.result()["vllm:num_requests_running"] == 3.0 for task in tasks)


@pytest.mark.parametrize(
    ("engine", "directory", "names"),
    [
        (
            "vllm",
            "vllm-0.32.0",
            {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"},
        ),
        ("sglang", "sglang-0.5.23", {"num_running_reqs", "num_queue_reqs", "token_usage"}),
        ("llamacpp", "llamacpp-b11549", {"requests_processing", "requests_deferred"}),
    ],
)
async def test_a_captured_page_passes_whole_and_the_gateways_find_their_names(
    aiohttp_client: AiohttpClient, engine: str, directory: str, names: set[str]
) -> None:
    captured = (DATA / directory / "get_metrics_after.http").read_bytes().replace(b"\r\n", b"\n")
    body = captured.partition(b"\n\n")[2]
    async with stand(whole(body), engine=engine) as made:
        client = await aiohttp_client(made.app())
        text = await (await client.get("/metrics")).text()
        found = {family.name: family for family in read_classic(text)}
        assert {f"{engine}:{name}" for name in names} <= set(found)
        ours = {
            name
            for name in found
            if name.startswith("wings_engine_") and not any(word in name for word in ("scrape", "log"))
        }
        assert {
            "wings_engine_requests_running",
            "wings_engine_requests_waiting",
            "wings_engine_prefix_cache_hit_ratio",
            "wings_engine_prompt_tokens",
            "wings_engine_generation_tokens",
        } <= ours
        assert found["wings_engine_scrape_dropped_lines"].samples[0].value == 0.0
        own = [line for line in body.splitlines() if line.startswith(engine.encode() + b":")]
        assert [line for line in text.encode().splitlines() if line.startswith(engine.encode() + b":")] == own
