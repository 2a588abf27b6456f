"""The switches of the fake engine: one flat set of values, changeable while it runs."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Flavour(enum.StrEnum):
    """Whose answers, headers, log lines and end the fake copies."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"


class Health(enum.StrEnum):
    """How `/health` answers once the engine has started."""

    OK = "ok"
    STATUS = "status"  # `health_status`, empty body
    HANG = "hang"  # accepts, reads, never answers
    DRIP = "drip"  # the head of a 200 at one byte every `drip_seconds`, never its end
    FLAP = "flap"  # 200 and 503 in turn
    REDIRECT = "redirect"  # 307 to itself
    HUGE = "huge"  # 200 with a body of `huge_bytes`
    CLOSE = "close"  # closes without a byte


class Metrics(enum.StrEnum):
    """How `/metrics` answers."""

    OK = "ok"
    OFF = "off"  # 404: SGLang without --enable-metrics
    ERROR = "error"  # 500
    HANG = "hang"
    REDIRECT = "redirect"
    HUGE = "huge"  # `huge_bytes` of well-formed samples, with the length told
    ENDLESS = "endless"  # chunked, for ever
    LONG_LINE = "long_line"  # one line of `huge_bytes`
    BINARY = "binary"  # bytes that are no text
    BOMB = "bomb"  # `huge_bytes` of well-formed samples, packed, although nobody asked for that
    WEIRD = "weird"  # NaN, Inf, -0, families twice, names of ours


class Fault(enum.StrEnum):
    """What goes wrong with an answer on `fault_paths`."""

    # Before the first byte of the answer.
    HANG = "hang"  # nothing, for ever
    CLOSE = "close"  # FIN without a byte
    RESET = "reset"  # RST without a byte
    EARLY_413 = "early_413"  # answered before the body is read, then closed
    # In the status line and the head.
    CLOSE_IN_STATUS = "close_in_status"
    CLOSE_IN_HEADERS = "close_in_headers"
    GARBAGE = "garbage"  # no HTTP at all
    TLS = "tls"  # a TLS alert
    SSH = "ssh"  # an SSH banner
    ENDLESS_STATUS = "endless_status"  # a status line without end
    BAD_LENGTH = "bad_length"  # Content-Length: abc
    TWO_LENGTHS = "two_lengths"  # two that differ
    LENGTH_AND_CHUNKED = "length_and_chunked"
    NUL_HEADER = "nul_header"
    CR_HEADER = "cr_header"
    MANY_HEADERS = "many_headers"  # 500
    FLOOD_1XX = "flood_1xx"  # `fault_count` interim answers, then the true one
    SLOW_HEADERS = "slow_headers"  # one byte every `drip_seconds`, then the true answer
    SWITCH = "switch"  # 101 nobody asked for
    # In the body of a stream, after `fault_after` events (of any body: at once).
    FIN = "fin"  # clean end of the connection, no last chunk
    RST = "rst"
    IN_CHUNK = "in_chunk"  # FIN in the middle of a chunk
    BAD_CHUNK = "bad_chunk"  # a chunk size that is none
    STALL = "stall"  # no further byte, connection open, /health 200
    ERROR_EVENT = "error_event"  # the engine's own error event, then [DONE]
    EXIT = "exit"  # the process ends with `exit_code`
    HUGE_EVENT = "huge_event"  # one event of `huge_bytes`
    SHORT = "short"  # Content-Length larger than what is sent (streams: as FIN)
    # Whole answers and what follows them.
    STATUS = "status"  # `fault_status` with Retry-After `fault_retry_after`, in the engine's error shape
    GZIP = "gzip"  # gzipped, although nobody asked
    GZIP_TRUNCATED = "gzip_truncated"
    EXTRA = "extra"  # a second answer nobody asked for, right after the true one
    STRAY = "stray"  # the same, `drip_seconds` later, on the idle connection
    CLOSE_AFTER = "close_after"  # keep-alive promised, connection closed right after the answer


class Stop(enum.StrEnum):
    """What SIGTERM does."""

    ABORT = "abort"  # vLLM: streams end with finish_reason "abort" and [DONE]
    DRAIN = "drain"  # SGLang: /health 503 at once, streams run to their end
    DRAIN_REFUSING = "drain_refusing"  # vLLM --shutdown-timeout: /health 200, new requests 500
    NOW = "now"  # llama.cpp: gone
    IGNORE = "ignore"


class Foreign(enum.StrEnum):
    """Another server on the port."""

    NO = "no"
    HTML = "html"  # 200 with a page on every path
    EMPTY = "empty"  # 200 without a body on every path
    UNAUTHORIZED = "unauthorized"  # 401 on every path but /health


STOP_OF = {Flavour.VLLM: Stop.ABORT, Flavour.SGLANG: Stop.DRAIN, Flavour.LLAMACPP: Stop.NOW}


@dataclass(slots=True, kw_only=True)
class FakeSettings:
    """Every switch. Times in seconds; `inf` waits for the control object to go on."""

    flavour: Flavour = Flavour.VLLM
    model: str = "/models/tiny-qwen2"
    served_names: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    # A second port for `/__fake__` alone: answers while the first is closed.
    control_port: int | None = None
    max_model_len: int = 8192
    max_num_seqs: int = 32
    api_key: str = ""
    request_id_headers: bool = False
    load_tracking: bool = False
    dev_mode: bool = False
    tool_parser: bool = False
    # With tool_choice "auto": call the first tool instead of answering in text.
    calls_tools: bool = False
    embeddings: bool = False
    keep_alive_seconds: float = 5.0

    # Start: connection refused for `boot_seconds`, then 503 for `loading_seconds` (SGLang's warm-up, llama.cpp's load).
    boot_seconds: float = 0.0
    loading_seconds: float = 0.0
    shards: int = 4
    # As a program: end with the output and exit code of a failed start, by name in `tests/fake/failures.py`.
    start_failure: str = ""

    # Generation.
    tokens: int = 16
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0
    stats_seconds: float = 10.0
    # As the statistics line names it: GPU, CPU, NPU.
    device: str = "GPU"

    # Health, metrics, identity.
    health: Health = Health.OK
    health_status: int = 503
    health_seconds: float = 0.0
    metrics: Metrics = Metrics.OK
    # LoRA adapters in use, as vLLM's metrics name them.
    adapters: tuple[str, ...] = ()
    foreign: Foreign = Foreign.NO

    # Faults of answers.
    fault: Fault | None = None
    fault_paths: tuple[str, ...] = ("/v1/chat/completions", "/v1/completions", "/generate")
    fault_after: int = 3
    # How many requests it strikes; None: all.
    fault_times: int | None = None
    fault_status: int = 429
    fault_retry_after: str = "1"
    fault_count: int = 10_000
    drip_seconds: float = 0.01
    huge_bytes: int = 5 * 1024 * 1024

    # The end. `stop` None: as the flavour does. vLLM took 1.0 s to the end of the streams and 2.5 s to its own.
    stop: Stop | None = None
    stop_seconds: float = 0.0
    exit_code: int = 0
    # Processes of the same group beside the leader, as vLLM's core and worker: they outlive a killed leader.
    children: int = 0
    # After `kill_core`: when the API server follows, with exit code 0 (some 5 s). inf: VLLM_KEEP_ALIVE_ON_ENGINE_DEATH.
    core_death_seconds: float = float("inf")

    def change(self, changes: Mapping[str, object]) -> None:
        """Set fields by name, from strings (command line) or JSON values; ValueError names a wrong one."""
        kinds = typing.get_type_hints(FakeSettings)
        for name, value in changes.items():
            if name not in kinds:
                raise ValueError(f"no setting {name!r}; there are {', '.join(sorted(kinds))}")
            try:
                setattr(self, name, _converted(kinds[name], value))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}={value!r}: {error}") from error

    def as_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def _converted(kind: Any, value: object) -> object:
    """Return `value` as the type of a field."""
    if isinstance(kind, types.UnionType):
        if value is None or value == "":
            return None
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, typing.cast(list[object], value)))
    if kind is bool:
        return bool(json.loads(value)) if isinstance(value, str) else bool(value)
    return kind(value)
