"""The README says what the code does."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.readme import README, with_generated_parts
from wings_proxy.config_load import load_config
from wings_proxy.launch import engine_stub


def test_the_tables_and_the_diagram_are_those_of_the_code() -> None:
    text = README.read_text("utf-8")
    assert text == with_generated_parts(text), "run: python -m tests.readme"


def test_the_first_success_comes_within_the_first_screens() -> None:
    lines = README.read_text("utf-8").splitlines()
    assert any("make demo" in line for line in lines[:20])
    assert any("make test-all" in line for line in lines[:30])


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
