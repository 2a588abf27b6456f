"""What the sidecar has to know of an engine: one `Engine` value for each, made in that engine's own file.

Facts were measured on vLLM 0.32.0, SGLang 0.5.23 and llama.cpp b11549 unless a comment names another source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from wings_proxy.engines.failure_reasons import FailureLine
from wings_proxy.engines.log_stats import LogReader, Silent
from wings_proxy.engines.metrics import MetricsDialect


class LaunchSettings(Protocol):
    """What of the configuration an engine is started with; `config.settings.Config` says what each means."""

    @property
    def model_path(self) -> str: ...  # noqa: D102
    @property
    def model_name(self) -> str: ...  # noqa: D102
    @property
    def served_model_name(self) -> str: ...  # noqa: D102
    @property
    def engine_port(self) -> int: ...  # noqa: D102
    @property
    def tp_size(self) -> int: ...  # noqa: D102
    @property
    def max_model_len(self) -> int: ...  # noqa: D102
    @property
    def max_num_seqs(self) -> int: ...  # noqa: D102
    @property
    def trust_remote_code(self) -> bool: ...  # noqa: D102
    @property
    def engine_extra_args(self) -> tuple[str, ...]: ...  # noqa: D102


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
    argv: Callable[[LaunchSettings], tuple[str, ...]]
    # The name clients have to ask for, as far as our own settings say it.
    served_model: Callable[[LaunchSettings], str]
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
    # Where it serves an OpenAPI document of its own, if it does.
    document_path: str | None
    # Where it tells its version, if it does: a path, and the key of the JSON object there.
    version_source: tuple[str, str] | None
    # In the order of a start; several lines may mean one phase.
    load_phases: tuple[LoadPhase, ...]
    # By which it says why it fails; of two that match a line the first counts.
    failure_lines: tuple[FailureLine, ...]
    # What it calls the numbers we give one set of names to.
    metrics: MetricsDialect
    # Makes what reads these numbers off the log, for when there are no metrics.
    log_reader: Callable[[], LogReader] = Silent
    # The module `python3` must have for `up` to start it; None: the engine is no Python program.
    python_module: str | None = None


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
