"""What an operator sees at 3 a.m., and a newcomer at `/docs`: a real run of llama.cpp, in a real browser.

With WINGS_SCREENSHOTS=DIRECTORY the pictures of the documentation are made anew.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.browser.driver import Browser, browser, chromium
from tests.llama_pod import llama_pod, real_model
from tests.pod import Pod

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture
async def model() -> Path:
    chromium()
    return await real_model()


async def shoot(page: Browser, name: str) -> None:
    """Keep a picture, if pictures are asked for."""
    if folder := os.environ.get("WINGS_SCREENSHOTS"):
        await page("shoot", file=f"{folder}/{name}.png")


async def assert_accessible(page: Browser) -> None:
    for scheme in ("light", "dark"):
        await page("look", width=900, height=900, scheme=scheme)
        assert await page("axe") == []
    await page("look", width=900, height=900, scheme="light")


async def chats(pod: Pod, count: int) -> None:
    """Give the charts something to show."""
    assert pod._session is not None
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60, "stream": True}

    async def one() -> None:
        assert pod._session is not None
        async with pod._session.post(f"{pod.url}/v1/chat/completions", json=body, timeout=None) as answer:
            assert answer.status == 200
            await answer.read()

    await asyncio.gather(*(one() for _ in range(count)))


@asynccontextmanager
async def stopped(pod: Pod) -> AsyncIterator[None]:
    """Hold the engine in the first phase of its load: it is too fast to be looked at."""

    def tell(number: signal.Signals) -> None:
        for pid in pod.engine.processes():
            # Its script is left alone: it has things to report.
            if pid != pod.engine.pid and b"llama_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)

    log = pod.volume / "engine.log"
    try:
        # From this line to ready are some 0.6 s: stopped at once, the engine leaves the sidecar time to read it.
        await pod.engine.until(lambda: log.exists() and b"load_model: loading model" in log.read_bytes(), 30)
        tell(signal.SIGSTOP)
        await pod.until(lambda health: health["progress"] is not None)
        yield
    finally:
        tell(signal.SIGCONT)


async def test_the_status_page_tells_the_life_of_an_engine(model: Path) -> None:
    async with llama_pod(model) as pod:
        elsewhere = pod.volume.rename(pod.volume.with_name("not-mounted"))
        pod.sidecar.start()
        await pod.sidecar.until(lambda: '"message":"listening"' in pod.sidecar.printed.replace('": "', '":"'), 10)
        async with browser(pod.url) as page:
            await page("open", path="/")
            await page.sees("#state", "^waiting$")
            await page.sees("#why", "volume missing")
            await assert_accessible(page)
            await shoot(page, "waiting")

            elsewhere.rename(pod.volume)
            await page.sees("#state", "^starting$")
            pod.engine.start()
            async with stopped(pod):
                await page.sees("#state", "^loading$")
                await page.sees("#eta", "phase: (weights|warm up|server)")
                assert await page("evaluate", expression="!document.getElementById('progress').hidden")
                await shoot(page, "loading")
            await page.sees("#state", "^ready$")
            for _ in range(3):
                await chats(pod, 4)
            await page.sees("#tiles section:nth-child(3) .figure", "[0-9] (ms|s) p50")
            await page.sees("#tiles section:nth-child(2) .figure", "^[0-9]")
            await assert_accessible(page)
            await shoot(page, "ready")
            await page("look", width=390, height=844, scheme="dark")
            assert await page("evaluate", expression="document.scrollingElement.scrollWidth") <= 390
            await shoot(page, "phone")
            await page("look", width=900, height=900, scheme="light")

            pod.engine.backoff = 3.0
            for pid in pod.engine.processes():
                if pid != pod.engine.pid:
                    os.kill(pid, signal.SIGKILL)
            await page.sees("#state", "^failed$")
            await page.sees("#failure", "killed")
            await shoot(page, "failed")
            await assert_accessible(page)
            await page.sees("#state", "^ready$")
            await page.sees("#timeline", "ready.*failed.*ready")
            await page("click", selector="summary")
            await page.sees("#settings", "ENGINE_TYPE")
            assert await page("problems") == []

            pod.sidecar.backoff = 5.0
            assert pod.sidecar.signal(signal.SIGKILL)
            await page.sees("#gone", "has not answered since")
            await page.sees("#state", "^ready$")
            await page("text", selector="body:has(#gone[hidden])", matches="")


async def test_a_newcomer_talks_to_the_model_from_the_docs(model: Path) -> None:
    async with llama_pod(model) as pod:
        await pod.start()
        async with browser(pod.url) as page:
            await page("open", path="/")
            await page.sees("#state", "^ready$")
            await page("open", path="/docs")
            await page("click", selector='[data-path="/v1/chat/completions"]')
            await page("click", selector="button.execute")
            answer = await page.sees(".live-responses-table .response", r"data: \{[\s\S]*\[DONE\]")
            assert '"delta"' in answer
            assert await page("problems") == []
            await page("evaluate", expression="document.querySelector('.btn-group').scrollIntoView()")
            await shoot(page, "docs")


async def test_with_keys_the_pages_ask_for_one(model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    async with llama_pod(model, WINGS_API_KEYS_FILE=str(keys)) as pod:
        await pod.start()
        assert (await pod.get("/"))[0] == 401
        async with browser(pod.url.replace("://", "://operator:sesame@")) as page:
            await page("open", path="/")
            await page.sees("#state", "^ready$")
