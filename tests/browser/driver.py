"""Talks to `browser.mjs`, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.pod import ROOT

_PROGRAM: Final = Path(__file__).with_name("browser.mjs")
_NODE_HOME: Final = ROOT / ".browser"
# The longest a page is waited for, and then some.
_ANSWER_SECONDS: Final = 60.0


class Browser:
    """One page of one browser."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, command: str, **options: Any) -> Any:
        """Have the browser do something; return its answer. A wish that is not fulfilled is an AssertionError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **options}).encode() + b"\n")
        async with asyncio.timeout(_ANSWER_SECONDS):
            line = await self._process.stdout.readline()
        assert line, "the browser ended"
        answer = json.loads(line)
        assert "error" not in answer, f"{command} {options}: {answer['error']}"
        return answer["ok"]

    async def sees(self, selector: str, matches: str) -> str:
        """Wait until an element's text matches; return the text."""
        return str(await self("text", selector=selector, matches=matches))


def chromium() -> str:
    """Return the browser's program; skip the test where something is missing."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = [
        what
        for what, found in (
            ("chromium (apt install chromium)", program),
            ("node (apt install nodejs)", shutil.which("node")),
            ("playwright (make test-pages installs it)", (_NODE_HOME / "node_modules" / "playwright-core").is_dir()),
        )
        if not found
    ]
    if missing or program is None:
        assert not os.environ.get("CI"), f"CI must have {missing}"
        pytest.skip(f"needs {', '.join(missing)}")
    return program


@contextlib.asynccontextmanager
async def browser(url: str, *, password: str = "") -> AsyncIterator[Browser]:
    """A browser for the pages of `url`; gone afterwards. Asked for a password, its user gives this one."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(_PROGRAM), url, chromium(), password),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_HOME": str(_NODE_HOME)},
        limit=1024 * 1024,
    )
    try:
        yield Browser(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
