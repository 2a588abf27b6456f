"""Render the launch script: the one file through which the engine's container learns what to run.

The script is a short head made here (who rendered it, how long to wait, the command) and the static body
``launch.sh``, which explains itself. Pure: no file of the volume is touched, see :mod:`wings_proxy.handover.volume`.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GENERATION_DIGITS: Final = 12

# A NUL cannot be passed to a program; a line end can, but no engine option needs one, and it could make a reader of
# the script (a human, a log) see lines that are not there.
_FORBIDDEN: Final = {"\0": "NUL", "\r": "a carriage return", "\n": "a line feed"}


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What the script shall run, and how long its ends may take.

    ``argv`` is the engine's command, one element an argument, whatever is in it. ``env`` is set for the engine only,
    not for the script. After SIGTERM the script waits at most ``release_seconds`` for the sidecar to let the run go,
    then the engine has ``stop_seconds`` before its process group is killed.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    release_seconds: int
    stop_seconds: int


@dataclass(frozen=True, slots=True)
class Script:
    """A rendered launch script.

    ``generation`` names its content: the first 12 hex digits of the SHA-256 of ``text`` rendered with an empty
    generation. Scripts with the same generation run the same command in the same way.
    """

    text: bytes
    generation: str


def render(spec: LaunchSpec) -> Script:
    """Render the script of ``spec``; the same spec gives the same bytes.

    Raises ``ValueError`` naming the element that cannot be passed on: an empty command, a NUL, CR or LF, a lone
    surrogate, a name that is no environment variable's, a negative duration.
    """
    _check(spec)
    generation = hashlib.sha256(_text(spec, "")).hexdigest()[:GENERATION_DIGITS]
    return Script(_text(spec, generation), generation)


def engine_stub(script_path: str) -> str:
    """The command of the engine's container, for ``sh -c``: wait for the script, then become it.

    Works as process number 1 of a stock image: a wait loop without the trap would ignore SIGTERM until the kubelet's
    grace period is over.
    """
    script = shlex.quote(script_path)
    return f"trap 'exit 143' TERM; until [ -f {script} ]; do sleep 1 & wait $!; done; exec sh {script}"


def _text(spec: LaunchSpec, generation: str) -> bytes:
    lines = [
        "#!/bin/sh",
        f"# generation: {generation}",
        "# Written by wings-proxy; changes made here are lost.",
        f"wings_generation='{generation}'",
        f"wings_release_seconds={spec.release_seconds}",
        f"wings_stop_seconds={spec.stop_seconds}",
        "set --" + "".join(f" \\\n  {_quote(word)}" for word in spec.argv),
    ]
    if spec.env:
        # env(1) and not `export`: PATH or LD_PRELOAD for the engine must not reach the script's own tools.
        settings = "".join(f" \\\n  {_quote(f'{name}={value}')}" for name, value in spec.env)
        lines.append(f'set -- env --{settings} \\\n  "$@"')
    # Names of files come from the operating system with bytes that are not UTF-8 as lone surrogates.
    return ("\n".join(lines) + "\n\n").encode(errors="surrogateescape") + _body()


@cache
def _body() -> bytes:
    return files("wings_proxy.handover").joinpath("launch.sh").read_bytes()


def _quote(word: str) -> str:
    # Always quoted, unlike shlex.quote: one rule, and bytes that a locale takes for letters never stand bare.
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _check(spec: LaunchSpec) -> None:
    if not spec.argv or not spec.argv[0]:
        raise ValueError("argv: the engine's command is empty")
    if "=" in spec.argv[0]:
        raise ValueError(
            f"argv[0]: {spec.argv[0]!r} has a '=' in the command's name, env(1) would take it for a setting"
        )
    for position, word in enumerate(spec.argv):
        _check_word(f"argv[{position}]", word)
    seen: set[str] = set()
    for name, value in spec.env:
        if not ENV_NAME.fullmatch(name):
            raise ValueError(f"env: {name!r} is not a variable's name (letters, digits, _; no digit first)")
        if name in seen:
            raise ValueError(f"env: {name} is set twice")
        seen.add(name)
        _check_word(f"env {name}", value)
    for what, seconds in (("release_seconds", spec.release_seconds), ("stop_seconds", spec.stop_seconds)):
        if seconds < 0:
            raise ValueError(f"{what}: {seconds} is negative")


def _check_word(where: str, word: str) -> None:
    for character, name in _FORBIDDEN.items():
        if character in word:
            raise ValueError(f"{where}: {word!r} contains {name}")
    try:
        word.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {word!r} contains a lone surrogate, which no encoding has bytes for") from None
