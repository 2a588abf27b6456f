"""What CONTRIBUTING.md says can be done: the engine of its example is written into a copy of the package and used."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SECTION = PAGE.partition("## Add an engine\n")[2].partition("\n## ")[0]

# Reads a log as the sidecar does, and tells each phase it shows.
REPLAY = """
import sys
from wings_proxy.engines import ENGINES
from wings_proxy.lifecycle.engine_log import LineSplitter, LoadProgress
progress = LoadProgress(ENGINES["lmdeploy"].load_phases)
for line in LineSplitter().feed(sys.stdin.buffer.read()):
    print(progress.see(line))
"""

# Reads a page as the sidecar does, and tells the numbers on it.
METRICS = """
import sys
from wings_proxy.engines import ENGINES
from wings_proxy.engines.metrics import normalise
from wings_proxy.engines.exposition import Exposition
engine = ENGINES["lmdeploy"]
page = Exposition(engine.metric_prefix, engine.metrics.names)
page.feed(sys.stdin.buffer.read())
page.end()
sample = normalise(engine.metrics, page.samples)
print(sample.running, sample.waiting, sample.prompt_tokens, sample.generation_tokens, sample.progress)
"""


def block(language: str) -> str:
    """Return the section's first block in that language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the repository's code with one file more: the one of the example."""
    ignored = shutil.ignore_patterns("__pycache__", "data")
    for folder in ("wings_proxy", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    name = re.search(r"^<!-- worked example: (\S+) -->$", SECTION, re.MULTILINE)
    assert name is not None
    module = tmp_path / name[1]
    assert not module.exists()
    module.write_text(block("python"), "utf-8")
    return tmp_path


def python(house: Path, *arguments: str, given: str = "", **environ: str) -> str:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(house), "PYTHONDONTWRITEBYTECODE": "1", **environ}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=house, env=environment, input=given, capture_output=True, encoding="utf-8"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def command_of_the_page() -> tuple[dict[str, str], list[str]]:
    """Return the variables and the arguments of the command that shows what the example gives."""
    words = shlex.split(block("sh"))
    assert words.count(".venv/bin/wings-proxy") == 1
    at = words.index(".venv/bin/wings-proxy")
    return dict(word.split("=", 1) for word in words[:at]), words[at + 1 :]


def test_the_engine_of_the_example_is_started_as_the_page_says(house: Path) -> None:
    environ, arguments = command_of_the_page()
    argv = json.loads(python(house, "-m", "wings_proxy", *arguments, **environ))
    assert argv == json.loads(block("json"))
    script = python(house, "-m", "wings_proxy", "render", **environ)
    assert script.startswith("#!/bin/sh\n")
    assert "set -- \\\n" + " \\\n".join(f"  '{word}'" for word in argv) + "\n" in script


def test_a_log_shows_the_phases_the_page_names(house: Path) -> None:
    told = python(house, "-c", REPLAY, given=block("text"), PYTHONUTF8="1").splitlines()
    assert told == [
        "Progress(phase='weights', ratio=0.5)",
        "Progress(phase='weights', ratio=1.0)",
        "Progress(phase='server', ratio=None)",
    ]


def test_its_numbers_get_the_names_all_engines_share(house: Path) -> None:
    page = "".join(
        f'lmdeploy:{name}{{model_name="m",engine="0"}} {value}\n'
        for name, value in (
            ("num_requests_running", 3.0),
            ("num_requests_waiting", 1.0),
            ("prompt_tokens_total", 40.0),
            ("generation_tokens_total", 60.0),
        )
    )
    assert python(house, "-c", METRICS, given=page).split() == ["3.0", "1.0", "40.0", "60.0", "100.0"]


@pytest.mark.slow
def test_the_house_takes_it_in_without_another_change(house: Path) -> None:
    python(house, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_layers.py", "-k", "lmdeploy or one_place")


@pytest.mark.slow
def test_the_example_is_written_as_we_write(house: Path) -> None:
    checkers = [name for name in ("mypy", "ruff") if importlib.util.find_spec(name) is None]
    if checkers:
        assert "CI" not in os.environ, checkers
        pytest.skip(f"without {checkers}: make .venv/.lint")
    file = "wings_proxy/engines/lmdeploy.py"
    python(house, "-m", "ruff", "check", "--no-cache", file)
    python(house, "-m", "ruff", "format", "--no-cache", "--check", file)
    python(house, "-m", "mypy", "--cache-dir", str(house / "cache"), file)


def test_every_target_and_every_room_is_on_the_page() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    told = set(re.findall(r"make ([a-z-]+)", PAGE))
    assert told <= set(phony[1].split())
    assert {target for target in phony[1].split() if target.startswith("test")} | {"lint", "soak", "bench"} <= told
    rooms = {folder.name for folder in (ROOT / "wings_proxy").iterdir() if (folder / "__init__.py").exists()}
    assert rooms == set(re.findall(r"^\| \*\*`(\w+)/`\*\*", PAGE, re.MULTILINE)) - {"docker", "deploy"}


def test_every_file_on_the_map_is_there() -> None:
    house = PAGE.partition("## The map of the house\n")[2].partition("\n## ")[0]
    room = ROOT
    for row in re.findall(r"^\| (.*) \| (.*) \|$", house, re.MULTILINE):
        if at := re.match(r"\*\*`([\w/]+)/`\*\*", row[0]):
            room = ROOT / at[1] if (ROOT / at[1]).is_dir() else ROOT / "wings_proxy" / at[1]
        for name in re.findall(r"`([\w/.]+\.\w+)`", row[1]):
            assert any((base / name).exists() for base in (room, ROOT, ROOT / "wings_proxy")), name
