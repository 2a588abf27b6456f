"""The YAML configuration file: read as untrusted text into flat dotted keys.

Only plain mappings, lists and texts: no tags, no aliases (a few nested ones expand to gigabytes), no duplicate keys
(YAML would silently keep the last). Every scalar is the text that stands there, as in an environment variable, so
`no`, `1.10`, `08` and `22:22` mean what they say; only an empty one, `~` and `null` are nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from wings_proxy.setting_kinds import shown

# Twenty times every setting there is; PyYAML takes a second for so much.
_LARGEST_FILE: Final = 64 * 1024


class ConfigFileError(Exception):
    """Something in the file is wrong; `problems` holds one line for each thing.

    `values` holds what is right nevertheless; None if the file cannot be used at all.
    """

    def __init__(self, *problems: str, values: Mapping[str, object] | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.values = values


def read_config_file(path: Path, known: frozenset[str]) -> dict[str, object]:
    """Return the file's values under dotted keys such as `engine.port`; null and empty values are left out.

    `known` holds every dotted key there is. Raises `ConfigFileError`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigFileError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigFileError("cannot be read: not a path") from None  # a NUL in it
    if len(data) > _LARGEST_FILE:
        raise ConfigFileError(f"is larger than {_LARGEST_FILE} bytes")
    try:
        tree = yaml.load(data, _Loader)  # noqa: S506 - _Loader is a SafeLoader that allows less
    except yaml.YAMLError as error:
        raise ConfigFileError(f"is not valid YAML: {_one_line_of(error)}") from None
    except (ValueError, OverflowError):
        # PyYAML lets through what chr() says to an escape such as "\U00110000".
        raise ConfigFileError("is not valid YAML: an escape names no character") from None
    except RecursionError:
        raise ConfigFileError("is nested too deeply") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigFileError("must be a mapping of settings")
    return _flatten(tree, known)


def _flatten(tree: Mapping[str, object], known: frozenset[str]) -> dict[str, object]:
    groups = {key.split(".")[0] for key in known}
    values: dict[str, object] = {}
    problems: list[str] = []
    for group, content in tree.items():
        if group in known:
            problems.append(f"{group}: keys are nested here: {group.replace('.', ', and under it ', 1)}")
        elif group not in groups:
            problems.append(f"{shown(group)}: no such key{_hint(group, sorted(groups | known))}")
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
        raise ConfigFileError(*problems, values=values)
    return values


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def _one_line_of(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return shown(f"{error.problem or error.context}, line {error.problem_mark.line + 1}")
    return shown(" ".join(str(error).split()))


class _Loader(yaml.SafeLoader):
    """YAML's safe subset without tags, aliases, merge keys, duplicate keys, and ideas of what a scalar means."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's way to say it
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave its result open
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.get_mark())
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "tags are not allowed", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
