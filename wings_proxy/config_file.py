"""The YAML configuration file: read as untrusted text into flat dotted keys.

Only plain mappings, lists and scalars: no tags, no anchors (a few nested aliases expand to gigabytes), no duplicate
keys (YAML would silently keep the last).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from wings_proxy.setting_kinds import shown

_LARGEST_FILE: Final = 1024 * 1024


class ConfigFileError(Exception):
    """The file cannot be used; `problems` holds one line for each thing that is wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_config_file(path: Path, known: frozenset[str]) -> dict[str, object]:
    """Return the file's values under dotted keys such as `engine.port`; null and empty values are left out.

    `known` holds every dotted key there is. Raises `ConfigFileError`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigFileError(f"cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise ConfigFileError(f"is larger than {_LARGEST_FILE} bytes")
    try:
        tree = yaml.load(data, _Loader)  # noqa: S506 - _Loader is a SafeLoader that allows less
    except yaml.YAMLError as error:
        raise ConfigFileError(f"is not valid YAML: {_one_line_of(error)}") from None
    except RecursionError:
        raise ConfigFileError("is nested too deeply") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigFileError("must be a mapping of settings")
    return _flatten(tree, known)


def _flatten(tree: Mapping[object, object], known: frozenset[str]) -> dict[str, object]:
    groups = {key.split(".")[0] for key in known}
    values: dict[str, object] = {}
    problems: list[str] = []
    for group, content in tree.items():
        if not isinstance(group, str) or group not in groups:
            problems.append(f"{shown(group)}: no such key{_hint(shown(group), sorted(groups | known))}")
        elif content is None:
            continue
        elif not isinstance(content, dict):
            problems.append(f"{group}: must be a mapping")
        else:
            for name, value in content.items():
                key = f"{group}.{name}"
                if key not in known:
                    problems.append(f"{shown(key)}: no such key{_hint(key, sorted(known))}")
                elif value is not None and value != "":
                    values[key] = value
    if problems:
        raise ConfigFileError(*problems)
    return values


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _one_line_of(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return shown(f"{error.problem or error.context}, line {error.problem_mark.line + 1}")
    return shown(" ".join(str(error).split()))


class _Loader(yaml.SafeLoader):
    """YAML's safe subset without anchors, merge keys and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not allowed", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
