"""What the sidecar has to know of an engine: one `Engine` value for each, made in that engine's own file.

Facts were measured on vLLM 0.32.0, SGLang 0.5.23 and llama.cpp b11549 unless a comment names another source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from wings_proxy.config import Config


@dataclass(frozen=True, slots=True)
class LoadPhase:
    """A step of the engine's start that its log shows.

    `line` must match from the start of a log line (escape sequences removed). Groups named `done` and `total`, where
    present, give the ratio of the phase.
    """

    name: str
    line: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of engine: how it is started, asked for its health, and which of its paths are for whom."""

    name: str
    argv: Callable[[Config], tuple[str, ...]]
    health_path: str
    # Least time a health probe is given, seconds: SGLang's generates a token and takes over one.
    health_seconds: float
    # How long an idle connection is kept, seconds: less than the engine does. 0: it closes after an answer.
    keep_alive_seconds: float
    # Prefix of the engine's own metric families, passed through unrenamed.
    metric_prefix: str
    # Paths clients use, exact; a part `*` stands for one path segment.
    inference_paths: frozenset[str]
    # Paths that change or reveal the engine's inside: refused unless WINGS_ALLOW_ADMIN.
    admin_paths: frozenset[str]
    # In the order of a start; several lines may mean one phase.
    load_phases: tuple[LoadPhase, ...]


# The OpenAI-compatible paths every engine is asked for; an engine without one of them answers 404 itself.
OPENAI_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/responses/*",
        "/v1/responses/*/cancel",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/*",
        "/v1/rerank",
        "/v1/score",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/tokenize",
        "/v1/detokenize",
        "/v2/rerank",
        "/rerank",
        "/score",
        "/tokenize",
        "/detokenize",
        "/generate",
        "/version",
    }
)


# What the sidecar must know to find the engine; all engines call them the same.
_FIXED_FLAGS = frozenset({"--host", "--port"})


def with_user_flags(ours: list[tuple[str, ...]], extra: tuple[str, ...]) -> tuple[str, ...]:
    """Return our flags, each `(flag, value…)`, without those the user's `extra` arguments set, then `extra`.

    The user's flag wins; of host and port ours come last, since every engine takes the last of two.
    """
    given = {argument.split("=", 1)[0].replace("_", "-") for argument in extra if argument.startswith("-")}
    first = [word for flag in ours if flag[0] not in given for word in flag]
    last = [word for flag in ours if flag[0] in given and flag[0] in _FIXED_FLAGS for word in flag]
    return (*first, *extra, *last)
