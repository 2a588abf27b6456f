"""The YAML configuration file: read as untrusted text into flat dotted keys.

Only plain mappings, lists and texts: no tags, no aliases (a few nested ones expand to gigabytes), no duplicate keys
(YAML would silently keep the last). Every scalar is the text that stands there, as in an environment variable, so
`no`, `1.10`, `08` and `22:22` mean what they say; only an empty one, `~` and `null` are nothing.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from wings_proxy.config.kinds import shown

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


def read_config_file(path: Path, known: Mapping[str, str | None]) -> dict[str, object]:
    """Return the file's values under dotted keys such as `engine.port`; null and empty values are left out.

    `known` holds every dotted key there is, with the variable of the same meaning. Raises `ConfigFileError`.
    """
    try:
        # A FIFO never makes us wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                raise ConfigFileError("is a pipe: it must be a file, which can be read again")
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


def _flatten(tree: Mapping[str, object], known: Mapping[str, str | None]) -> dict[str, object]:
    keys = {variable: key for key, variable in known.items() if variable is not None}
    groups = {key.split(".")[0] for key in known}
    values: dict[str, object] = {}
    problems: list[str] = []
    for group, content in tree.items():
        if group in known:
            problems.append(f"{group}: keys are nested here: {_nested(group)}")
        elif group in keys:
            problems.append(f"{group}: is a variable's name; in this file it is {_nested(keys[group])}")
        elif group not in groups:
            problems.append(f"{shown(group)}: no such key{_hint(group, sorted({*groups, *known}))}")
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


def _nested(key: str) -> str:
    return key.replace(".", ", and under it ", 1)


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


# What PyYAML says of the two mistakes people make most, and what it means.
_ADVICE: Final = {
    "found character '\\t'": ": indent with spaces",
    "expected <block end>": ": is it indented like the lines around it?",
    "mapping values are not allowed here": ": is it indented like the lines around it, and a text with a colon quoted?",
}


def _one_line_of(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = str(error.problem or error.context)
        advice = next((advice for part, advice in _ADVICE.items() if part in problem), "")
        return shown(f"{problem}, line {error.problem_mark.line + 1}{advice}", limit=200)
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
