"""The READMEs say what the code does, and both the same."""

from __future__ import annotations

import json
import math
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.chinese import MEANINGS, allowed
from tests.readme import CHINESE, PAGES, README, ROOT, with_generated_parts
from wings_proxy.config.load import load_config
from wings_proxy.config.settings import SETTINGS
from wings_proxy.engines import ENGINES
from wings_proxy.handover.launch import engine_stub
from wings_proxy.local.default_model import DEFAULT_MODEL


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_and_the_diagram_are_those_of_the_code(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tuple(re.findall(r"<!-- generated: (\S+) -->", text)) == PAGES[page]
    assert text == with_generated_parts(text), "run: python -m tests.readme"


def height(lines: list[str]) -> int:
    """Return how many lines of 80 columns they take."""
    return sum(max(1, math.ceil(len(line) / 80)) for line in lines)


def test_the_first_success_comes_within_a_hundred_lines_of_eighty_columns() -> None:
    before, found, _ = README.read_text("utf-8").partition("curl http://127.0.0.1:9000/health\n")
    assert found
    assert "make demo\n" in before
    assert "Ctrl-C\n" in before
    assert height(before.splitlines()) < 100


def test_the_request_it_shows_is_one_that_is_forwarded() -> None:
    (command,) = re.findall(r"^curl -N .*?(?=^curl )", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    _, _, url, _, header, _, body = shlex.split(command.replace("\\\n", ""))
    assert urlsplit(url).port == load_config({"MODEL_PATH": "/m"}).port
    assert urlsplit(url).path in ENGINES["llamacpp"].inference_paths
    assert header == "Content-Type: application/json"
    assert json.loads(body).keys() == {"model", "stream", "messages"}
    assert json.loads(body)["model"] == DEFAULT_MODEL.name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


# -- in step: the two READMEs -----------------------------------------------------------------------------------------


def sections(page: Path) -> list[str]:
    """Return the page cut before each heading; what is made from the code is compared elsewhere."""
    text = re.sub(r"<!-- generated: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL)
    return re.split(r"^(?=#{1,6} )", text, flags=re.MULTILINE)


def level(section: str) -> int:
    return len(section) - len(section.lstrip("#"))


def code_blocks(section: str) -> list[str]:
    return re.findall(r"^ *```.*?^ *```$", section, re.MULTILINE | re.DOTALL)


def prose(section: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", section, flags=re.MULTILINE | re.DOTALL)


def names(section: str) -> set[str]:
    """Return all that stands in backquotes: settings, commands, paths, states."""
    return set(re.findall(r"`([^`\n]+)`", prose(section)))


def links(section: str) -> list[str]:
    """Return where the links lead, but those from one language to the other."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", section) if not target.startswith("README")]


def first_column(section: str) -> list[str]:
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [row.split("|")[1].strip() for row in rows]


def numbers(section: str) -> list[str]:
    """Return the numbers of the prose, in no order: a sentence may begin elsewhere in another language."""
    return sorted(re.findall(r"(?<![\w.])\d+(?:[.]\d+)*", re.sub(r"`[^`\n]+`", "", prose(section))))


PAIRS = list(zip(sections(README), sections(CHINESE), strict=False))
TITLES = [english.partition("\n")[0].strip("# ") or "top" for english, _ in PAIRS]


def test_both_have_the_same_headings_in_the_same_order() -> None:
    assert [level(section) for section in sections(README)] == [level(section) for section in sections(CHINESE)]


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=TITLES)
def test_both_say_the_same_in_what_needs_no_translation(english: str, chinese: str) -> None:
    assert code_blocks(english) == code_blocks(chinese)
    assert names(english) == names(chinese)
    assert links(english) == links(chinese)
    assert first_column(english)[1:] == first_column(chinese)[1:]
    assert numbers(english) == numbers(chinese)


def test_each_setting_is_told_in_both_with_the_same_names() -> None:
    assert MEANINGS.keys() == {setting.meaning for setting in SETTINGS}
    for english, chinese in MEANINGS.items():
        assert set(re.findall(r"`[^`]+`", english)) == set(re.findall(r"`[^`]+`", chinese)), english
        assert re.search("[\u4e00-\u9fff]", chinese), english


def test_what_nobody_has_translated_is_no_silent_gap() -> None:
    with pytest.raises(KeyError, match="a colour"):
        allowed("a colour")


def yaml_blocks(text: str) -> Iterator[Any]:
    for block in text.split("```yaml\n")[1:]:
        yield yaml.safe_load(textwrap.dedent(block.partition("```")[0]))


def test_the_engine_containers_command_is_the_one_the_tests_run() -> None:
    command, _ = yaml_blocks(README.read_text("utf-8"))
    assert command == {"command": ["sh", "-c", engine_stub("/shared-volume/start_command.sh")]}


def test_the_configuration_file_shown_is_one(tmp_path: Path) -> None:
    _, settings = yaml_blocks(README.read_text("utf-8"))
    (tmp_path / "wings.yaml").write_text(yaml.safe_dump(settings))
    config = load_config({"WINGS_CONFIG": str(tmp_path / "wings.yaml")})
    assert (config.model_path, config.engine_extra_args) == (
        "/models/Qwen2.5-0.5B-Instruct",
        ("--enable-prefix-caching",),
    )
