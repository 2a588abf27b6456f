"""The configuration file: what it may hold, and what is said about everything else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wings_proxy.config.file import ConfigFileError, read_config_file

KNOWN = {
    "engine.port": "ENGINE_PORT",
    "engine.type": "ENGINE_TYPE",
    "engine.extra_args": "ENGINE_EXTRA_ARGS",
    "engine.env": None,
    "model.name": "MODEL_NAME",
    "drain.quiet_seconds": "WINGS_QUIET_SECONDS",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "wings.yaml"


def read(file: Path, content: str | bytes) -> dict[str, object]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_config_file(file, KNOWN)


def problems(file: Path, content: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigFileError) as caught:
        read(file, content)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)
    return caught.value.problems


def test_groups_of_settings_become_dotted_keys(file: Path) -> None:
    content = """
# a ConfigMap
engine:
  port: 8000
  type: "vllm"
  extra_args: [--enforce-eager, --seed, "0"]
  env:
    NCCL_DEBUG: INFO
model:
  name: Qwen größe
"""
    assert read(file, content) == {
        "engine.port": "8000",
        "engine.type": "vllm",
        "engine.extra_args": ["--enforce-eager", "--seed", "0"],
        "engine.env": {"NCCL_DEBUG": "INFO"},
        "model.name": "Qwen größe",
    }


@pytest.mark.parametrize(
    "text",
    [
        *("no", "off", "Yes", "true", "1.10", "08", "0x10", "1_000", "22:22", "1e3", ".inf", "0x_"),
        *("2026-11-22", "2026-99-99", "=", "<<", "1" * 5000),
    ],
)
def test_a_scalar_is_the_text_that_stands_there(file: Path, text: str) -> None:
    assert read(file, f"model: {{name: {text}}}") == {"model.name": text}


@pytest.mark.parametrize("nothing", ["", "~", "null", '""'])
def test_an_empty_value_is_as_if_it_were_not_there(file: Path, nothing: str) -> None:
    assert read(file, f"model: {{name: {nothing}}}\nengine: ~") == {}


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "~", "{}"])
def test_an_empty_file_sets_nothing(file: Path, content: str) -> None:
    assert read(file, content) == {}


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfmodel: {name: x}", "model: {name: x}".encode("utf-16"), b"model:\r\n  name: x\r\n"]
)
def test_what_editors_of_other_systems_write_is_read(file: Path, content: bytes) -> None:
    assert read(file, content) == {"model.name": "x"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("- engine", "must be a mapping of settings"),
        ("engine", "must be a mapping of settings"),
        ("engine: 1", "engine: must be a mapping"),
        ("engine: [port]", "engine: must be a mapping"),
        ("engin: {port: 1}", "engin: no such key; did you mean engine?"),
        ("engine.port: 1", "engine.port: keys are nested here: engine, and under it port"),
        ("engine: {prot: 1}", "engine.prot: no such key; did you mean engine.port?"),
        ("engine: {zzzzzzzzzzzzzz: 1}", "engine.zzzzzzzzzzzzzz: no such key"),
        ("qqq: 1", "qqq: no such key"),
        ('"a\\nb": 1', "a\\nb: no such key"),
        ("engine: {<<: {port: 1}}", "engine.<<: no such key"),
        ("engine: {port: 1, port: 2}", "is not valid YAML: the key port stands here twice, line 1"),
        ("engine: {port: 1}\nengine: {type: vllm}", "is not valid YAML: the key engine stands here twice, line 2"),
        ("engine:\n  env: {A: 1, A: 2}", "is not valid YAML: the key A stands here twice, line 2"),
        ("a: &x [1]\nb: *x", "is not valid YAML: aliases are not allowed, line 2"),
        ("engine: !!python/object:os.system {}", "is not valid YAML: tags are not allowed, line 1"),
        ("!!python/object/apply:os.system [x]", "is not valid YAML: tags are not allowed, line 1"),
        ("engine: {port: !!int x}", "is not valid YAML: tags are not allowed, line 1"),
        ("engine: {port: ! x}", "is not valid YAML: tags are not allowed, line 1"),
        ("engine: {[a]: 1}", "is not valid YAML: a key must be a text, line 1"),
        ("engine:\n  ~: 1", "is not valid YAML: a key must be a text, line 2"),
        (
            "engine:\n\tport: 1",
            "is not valid YAML: found character '\\t' that cannot start any token, line 2: indent with spaces",
        ),
        (
            "engine:\n  type: vllm\n port: 1",
            (
                "is not valid YAML: expected <block end>, but found '<block mapping start>', line 3: "
                "is it indented like the lines around it?"
            ),
        ),
        (
            "engine: type: vllm",
            (
                "is not valid YAML: mapping values are not allowed here, line 1: "
                "is it indented like the lines around it, and a text with a colon quoted?"
            ),
        ),
        ("ENGINE_PORT: 1", "ENGINE_PORT: is a variable's name; in this file it is engine, and under it port"),
        ("engine: {port: 1", "is not valid YAML: expected ',' or '}', but got '<stream end>', line 1"),
        ("a: 1\n---\nb: 2", "is not valid YAML: but found another document, line 2"),
        ('model: {name: "\\U00110000"}', "is not valid YAML: an escape names no character"),
        ('model: {name: "\\Uffffffff"}', "is not valid YAML: an escape names no character"),
        (b"model: {name: \xff}", "is not valid YAML: unacceptable character #x00ff: "),
        (b"model: {name: \0}", "is not valid YAML: unacceptable character #x0000: "),
        ("[" * 1000, "is nested too deeply"),
        ("{a: " * 1000, "is nested too deeply"),
        ("#" * (64 * 1024 + 1), "is larger than 65536 bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(file: Path, content: str | bytes, problem: str) -> None:
    (line,) = problems(file, content)
    assert line == problem or (problem.endswith(": ") and line.startswith(problem))


def test_the_billion_laughs_are_refused_before_they_are_counted(file: Path) -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert problems(file, "\n".join(lines)) == ("is not valid YAML: aliases are not allowed, line 2",)


def test_everything_wrong_is_said_at_once_and_what_is_right_is_kept(file: Path) -> None:
    content = "engin: {}\nengine: {prot: 1, port: 8000}\nmodel: x\ndrain: {quiet_seconds: 5}\n"
    assert problems(file, content) == (
        "engin: no such key; did you mean engine?",
        "engine.prot: no such key; did you mean engine.port?",
        "model: must be a mapping",
    )
    with pytest.raises(ConfigFileError) as caught:
        read(file, content)
    assert caught.value.values == {"engine.port": "8000", "drain.quiet_seconds": "5"}


def test_of_a_file_that_cannot_be_used_nothing_is_known(file: Path) -> None:
    with pytest.raises(ConfigFileError) as caught:
        read(file, "- engine")
    assert caught.value.values is None


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("absent.yaml", "cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
        ("file/x.yaml", "cannot be read: Not a directory"),
        ("a\0b", "cannot be read: not a path"),
        ("n" * 300, "cannot be read: File name too long"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, path: str, problem: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigFileError, match=f"^{problem}$"):
        read_config_file(tmp_path / path, KNOWN)


YAMLISH = st.text(st.sampled_from("aeginport:{}[],-&*!|>'\"#%@`\\U0x1 \n\t~?<=\x85\u2028\ufeffé"), max_size=60)


def test_a_pipe_makes_nobody_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wings.yaml")
    with pytest.raises(ConfigFileError, match=r"^is a pipe: it must be a file, which can be read again$"):
        read_config_file(tmp_path / "wings.yaml", KNOWN)


@given(st.binary(max_size=60) | YAMLISH.map(str.encode))
def test_no_file_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    values: Mapping[str, object]
    try:
        values = read(file, content)
    except ConfigFileError as error:
        said, values = error.problems, error.values or {}
    else:
        said = ("no problem",)
    assert [len(problem.splitlines()) for problem in said] == [1] * max(1, len(said)), said
    assert values.keys() <= KNOWN.keys()
