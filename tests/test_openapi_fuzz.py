"""Schemathesis, as a program of an environment of its own, asks everything that `/openapi.json` tells of.

The sidecar must give no 5xx, no answer its own document does not tell of, no way around a key. What the engine makes of
a body is the engine's: of its paths only what the proxy answers for is checked. `WINGS_FUZZ_EXAMPLES=2000 make soak`
goes on longer, with other examples each time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fake_engine import StartEngine
from tests.sidecar import Sidecar, sidecar

ROOT = Path(__file__).parent.parent
# `make test-fuzz` makes it.
SCHEMATHESIS = ROOT / ".venv-fuzz" / "bin" / "schemathesis"
EXAMPLES = os.environ.get("WINGS_FUZZ_EXAMPLES", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600 if EXAMPLES else 120),
    pytest.mark.skipif(
        not SCHEMATHESIS.exists() and not os.environ.get("CI"), reason="no .venv-fuzz; `make test-fuzz` makes it"
    ),
]

# Whether a body makes sense, and what a method is answered that it has not, is for the engine to say: our document does
# not repeat what it accepts.
OF_THE_ENGINE = [
    *("--include-tag", "engine"),
    *(
        "--exclude-checks",
        "positive_data_acceptance,negative_data_rejection,unsupported_method,allow_header_conformance",
    ),
]
OF_THE_SIDECAR = ["--include-tag", "sidecar"]


async def fuzz(running: Sidecar, which: Sequence[str], directory: Path) -> None:
    """Run schemathesis; fail with its report if it found anything."""
    # In CI the same examples each time.
    chance = ["--generation-database", "none"] if EXAMPLES else ["--generation-deterministic"]
    program = await asyncio.create_subprocess_exec(
        str(SCHEMATHESIS),
        "run",
        f"http://127.0.0.1:{running.port}/openapi.json",
        *("--max-examples", EXAMPLES or "25"),
        *("--request-timeout", "20"),
        *("--warnings", "off"),
        "--no-color",
        *chance,
        *which,
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        report, _ = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    text = report.decode()
    assert program.returncode == 0, text[-6000:]
    print(text[text.index("SUMMARY") :])


@asynccontextmanager
async def unharmed(
    fake_engine: StartEngine, directory: Path, caplog: pytest.LogCaptureFixture, **environ: str
) -> AsyncIterator[Sidecar]:
    """A sidecar that afterwards has met no fault of its own."""
    engine = await fake_engine(max_num_seqs=100)
    volume = directory / "volume"
    volume.mkdir()
    async with sidecar(volume, engine.port, **environ) as running:
        await running.health(lambda body: body["state"] == "ready")
        yield running
        page = (await running.get("/metrics"))[1]
        assert 'wings_api_errors_total{code="internal_error"} 0.0' in page
        assert "wings_requests_in_flight 0.0" in page
        await running.health(lambda body: body["state"] == "ready")
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@pytest.mark.parametrize("which", [OF_THE_SIDECAR, OF_THE_ENGINE], ids=["sidecar", "engine"])
async def test_every_answer_is_as_documented(
    fake_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, which: list[str]
) -> None:
    async with unharmed(fake_engine, tmp_path, caplog) as running:
        await fuzz(running, which, tmp_path)


async def test_no_way_leads_around_a_key(
    fake_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    async with unharmed(fake_engine, tmp_path, caplog, WINGS_API_KEYS_FILE=str(keys)) as running:
        # The document too asks for a key: it is fetched with one, and every check but this needs none.
        with_key = ["--header", "Authorization: Bearer first-key", "--checks", "ignored_auth,not_a_server_error"]
        await fuzz(running, with_key, tmp_path)
