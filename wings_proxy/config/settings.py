"""The table of settings: every one a field of `Config`, with its variable, YAML key, kind, default and meaning.

The README's table, `wings-proxy check` and the loader (`config_load`) are all made from these fields, so a setting
is added here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from wings_proxy.config.kinds import (
    Boolean,
    ByteCount,
    Choice,
    EnvironmentBlock,
    Host,
    Integer,
    Kind,
    OptionalSeconds,
    Origins,
    Seconds,
    Text,
    Words,
)
from wings_proxy.engines import ENGINES


@dataclass(frozen=True, slots=True)
class Setting:
    """What the table knows of one field of `Config`: where its value comes from and what is allowed."""

    field: str
    env: str | None
    yaml: str
    kind: Kind[Any]
    default: Any
    required: bool
    meaning: str

    @property
    def name(self) -> str:
        """The name to use in messages: the variable, or the YAML key where there is no variable."""
        return self.env or self.yaml


def _setting(
    kind: Kind[Any], meaning: str, *, env: str | None, yaml: str, default: Any = None, required: bool = False
) -> Any:
    """Declare a field of `Config`; typed like `dataclasses.field`, whose result also stands for the value."""
    return dataclasses.field(
        default=default,
        metadata={
            "env": env,
            "yaml": yaml,
            "kind": kind,
            "default": default,
            "required": required,
            "meaning": meaning,
        },
    )


_MIB: Final = 1024 * 1024
_DAY: Final = 86_400.0
_PORT: Final = Integer(1, 65_535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting of the sidecar, validated. Durations are seconds, sizes bytes."""

    engine_type: str = _setting(
        Choice(*ENGINES),
        "engine to run",
        env="ENGINE_TYPE",
        yaml="engine.type",
        default="vllm",
    )
    engine_port: int = _setting(
        _PORT, "port of the engine, on 127.0.0.1", env="ENGINE_PORT", yaml="engine.port", default=8000
    )
    port: int = _setting(_PORT, "port the sidecar listens on", env="WINGS_PORT", yaml="server.port", default=9000)
    host: str = _setting(
        Host(),
        "address to listen on; empty: all interfaces, IPv4 and IPv6 (`up`: 127.0.0.1)",
        env="WINGS_HOST",
        yaml="server.host",
        default="",
    )
    model_path: str = _setting(
        Text(),
        "path or hub id given to the engine",
        env="MODEL_PATH",
        yaml="model.path",
        default="",
        required=True,
    )
    model_name: str = _setting(
        Text(),
        "human name of the model, label `model_name` of metrics; default: last part of `MODEL_PATH`",
        env="MODEL_NAME",
        yaml="model.name",
        default="",
    )
    served_model_name: str = _setting(
        Text(),
        "name clients use; unset: the engine's own choice (vLLM: the path)",
        env="SERVED_MODEL_NAME",
        yaml="model.served_name",
        default="",
    )
    tp_size: int = _setting(Integer(1, 1024), "tensor parallel size", env="TP_SIZE", yaml="engine.tp_size", default=1)
    max_model_len: int = _setting(
        Integer(1, 100_000_000),
        "context length, tokens",
        env="MAX_MODEL_LEN",
        yaml="model.max_len",
        default=4096,
    )
    max_num_seqs: int = _setting(
        Integer(1, 100_000),
        "sequences the engine runs at once",
        env="MAX_NUM_SEQS",
        yaml="engine.max_num_seqs",
        default=32,
    )
    trust_remote_code: bool = _setting(
        Boolean(),
        "let the engine run Python code that comes with the model",
        env="TRUST_REMOTE_CODE",
        yaml="engine.trust_remote_code",
        default=True,
    )
    engine_extra_args: tuple[str, ...] = _setting(
        Words(),
        "further engine arguments, shell-quoted (a list in YAML); they win over ours, except host and port",
        env="ENGINE_EXTRA_ARGS",
        yaml="engine.extra_args",
        default=(),
    )
    engine_env: tuple[tuple[str, str], ...] = _setting(
        EnvironmentBlock(),
        "variables the launch script exports; never secrets: those belong in the engine container's own `env`",
        env=None,
        yaml="engine.env",
        default=(),
    )
    engine_api_key_file: str = _setting(
        Text(),
        "file with the key the engine itself asks for",
        env="WINGS_ENGINE_API_KEY_FILE",
        yaml="engine.api_key_file",
        default="",
    )
    shared_volume_path: str = _setting(
        Text(),
        "directory shared with the engine container",
        env="SHARED_VOLUME_PATH",
        yaml="volume.path",
        default="/shared-volume",
    )
    api_keys_file: str = _setting(
        Text(),
        "file with one client API key a line; unset: no key is asked for",
        env="WINGS_API_KEYS_FILE",
        yaml="server.api_keys_file",
        default="",
    )
    metrics_auth: bool = _setting(
        Boolean(),
        "ask for an API key at `/metrics` too, when there are keys",
        env="WINGS_METRICS_AUTH",
        yaml="server.metrics_auth",
        default=False,
    )
    cors_origins: tuple[str, ...] = _setting(
        Origins(),
        "web pages of these origins may send requests from a browser",
        env="WINGS_CORS_ORIGINS",
        yaml="server.cors_origins",
        default=(),
    )
    allow_admin: bool = _setting(
        Boolean(),
        "forward the engine's administration paths",
        env="WINGS_ALLOW_ADMIN",
        yaml="server.allow_admin",
        default=False,
    )
    allow_all_paths: bool = _setting(
        Boolean(),
        "forward paths we do not know",
        env="WINGS_ALLOW_ALL_PATHS",
        yaml="server.allow_all_paths",
        default=False,
    )
    max_inflight: int = _setting(
        Integer(0, 1_000_000),
        "requests forwarded at once, more get 429; 0: no limit",
        env="WINGS_MAX_INFLIGHT",
        yaml="server.max_inflight",
        default=0,
    )
    max_body_bytes: int = _setting(
        ByteCount(1, 1024 * 1024 * _MIB),
        "largest request body, larger ones get 413",
        env="WINGS_MAX_BODY_BYTES",
        yaml="server.max_body_bytes",
        default=64 * _MIB,
    )
    max_connections: int = _setting(
        Integer(0, 1_000_000),
        "client connections at once, at the cap the one idle longest goes; 0: what the file descriptors allow",
        env="WINGS_MAX_CONNECTIONS",
        yaml="server.max_connections",
        default=0,
    )
    header_timeout_seconds: float = _setting(
        Seconds(0.1, 3600),
        "time for a request's head to come",
        env="WINGS_HEADER_TIMEOUT_SECONDS",
        yaml="timeouts.header_seconds",
        default=30.0,
    )
    body_timeout_seconds: float = _setting(
        Seconds(0.1, _DAY),
        "time spent waiting for a request's body, and a second more for each 500 bytes of it that came",
        env="WINGS_BODY_TIMEOUT_SECONDS",
        yaml="timeouts.body_seconds",
        default=60.0,
    )
    keepalive_timeout_seconds: float = _setting(
        Seconds(0.1, _DAY),
        "a connection without a request is closed after so long; longer than the load balancer in front keeps it",
        env="WINGS_KEEPALIVE_TIMEOUT_SECONDS",
        yaml="timeouts.keepalive_seconds",
        default=620.0,
    )
    connect_timeout_seconds: float = _setting(
        Seconds(0.01, 600),
        "time to connect to the engine",
        env="WINGS_CONNECT_TIMEOUT_SECONDS",
        yaml="timeouts.connect_seconds",
        default=5.0,
    )
    first_byte_timeout_seconds: float | None = _setting(
        OptionalSeconds(0.01, _DAY),
        "time to the engine's first byte (a long prefill is silent)",
        env="WINGS_FIRST_BYTE_TIMEOUT_SECONDS",
        yaml="timeouts.first_byte_seconds",
    )
    idle_timeout_seconds: float | None = _setting(
        OptionalSeconds(0.01, _DAY),
        "silence allowed between two bytes of an answer",
        env="WINGS_IDLE_TIMEOUT_SECONDS",
        yaml="timeouts.idle_seconds",
    )
    write_stall_seconds: float = _setting(
        Seconds(0.1, _DAY),
        "a client that reads nothing for so long, or whose machine answers nothing, is cut",
        env="WINGS_WRITE_STALL_SECONDS",
        yaml="timeouts.write_stall_seconds",
        default=60.0,
    )
    scrape_timeout_seconds: float = _setting(
        Seconds(0.05, 60),
        "time for the engine's own `/metrics` page; later, ours is served without it",
        env="WINGS_SCRAPE_TIMEOUT_SECONDS",
        yaml="scrape.timeout_seconds",
        default=1.0,
    )
    scrape_max_bytes: int = _setting(
        ByteCount(1024, 256 * _MIB),
        "longest page of the engine's that is taken",
        env="WINGS_SCRAPE_MAX_BYTES",
        yaml="scrape.max_bytes",
        default=16 * _MIB,
    )
    probe_interval_seconds: float = _setting(
        Seconds(0.05, 3600),
        "time between two health probes of the engine when ready; at most a second while it loads",
        env="WINGS_PROBE_INTERVAL_SECONDS",
        yaml="probe.interval_seconds",
        default=5.0,
    )
    probe_timeout_seconds: float = _setting(
        Seconds(0.05, 600),
        "time for one probe's answer",
        env="WINGS_PROBE_TIMEOUT_SECONDS",
        yaml="probe.timeout_seconds",
        default=5.0,
    )
    probe_failures: int = _setting(
        Integer(1, 1000),
        "failed probes in a row that make a ready engine unhealthy",
        env="WINGS_PROBE_FAILURES",
        yaml="probe.failures",
        default=3,
    )
    probe_successes: int = _setting(
        Integer(1, 1000),
        "good probes in a row that make an engine ready",
        env="WINGS_PROBE_SUCCESSES",
        yaml="probe.successes",
        default=1,
    )
    startup_timeout_seconds: float = _setting(
        Seconds(0.1, _DAY),
        "loading without any progress for so long is a failure",
        env="WINGS_STARTUP_TIMEOUT_SECONDS",
        yaml="lifecycle.startup_timeout_seconds",
        default=300.0,
    )
    stall_seconds: float | None = _setting(
        OptionalSeconds(1.0, _DAY),
        "a ready engine that holds requests, sends no byte and whose own counters stand still for so long is "
        "unhealthy, whatever its health path says; needs the engine's metrics",
        env="WINGS_STALL_SECONDS",
        yaml="lifecycle.stall_seconds",
        default=120.0,
    )
    engine_kill_seconds: float = _setting(
        Seconds(0.0, _DAY),
        "`/livez/engine` fails when a once ready engine has been unhealthy for so long",
        env="WINGS_ENGINE_KILL_SECONDS",
        yaml="lifecycle.engine_kill_seconds",
        default=120.0,
    )
    load_kill_seconds: float | None = _setting(
        OptionalSeconds(0.0, _DAY),
        "`/livez/engine` fails when an engine that was never ready has been failed for so long",
        env="WINGS_LOAD_KILL_SECONDS",
        yaml="lifecycle.load_kill_seconds",
    )
    quiet_seconds: float = _setting(
        Seconds(0.0, 3600),
        "time to keep serving after a stop was asked for, while endpoints are being removed",
        env="WINGS_QUIET_SECONDS",
        yaml="drain.quiet_seconds",
        default=5.0,
    )
    drain_seconds: float = _setting(
        Seconds(0.0, _DAY),
        "time for requests in flight to finish after the quiet period",
        env="WINGS_DRAIN_SECONDS",
        yaml="drain.drain_seconds",
        default=60.0,
    )
    engine_stop_seconds: float = _setting(
        Seconds(0.0, _DAY),
        "time the engine has to end after SIGTERM before its process group is killed",
        env="WINGS_ENGINE_STOP_SECONDS",
        yaml="drain.engine_stop_seconds",
        default=30.0,
    )
    grace_period_seconds: float = _setting(
        Seconds(0.0, _DAY),
        "the pod's terminationGracePeriodSeconds; at least the three above together and 10 s more",
        env="WINGS_GRACE_PERIOD_SECONDS",
        yaml="drain.grace_period_seconds",
        default=120.0,
    )
    event_loop: str = _setting(
        Choice("uvloop", "asyncio"),
        "event loop to run on; uvloop takes about half the CPU",
        env="WINGS_EVENT_LOOP",
        yaml="server.event_loop",
        default="uvloop",
    )
    log_format: str = _setting(
        Choice("json", "plain"),
        "form of our own log lines",
        env="WINGS_LOG_FORMAT",
        yaml="log.format",
        default="json",
    )
    log_level: str = _setting(
        Choice("debug", "info", "warning", "error"),
        "least important log line shown",
        env="WINGS_LOG_LEVEL",
        yaml="log.level",
        default="info",
    )
    access_log: bool = _setting(
        Boolean(),
        "one log line for each forwarded request",
        env="WINGS_ACCESS_LOG",
        yaml="log.access",
        default=True,
    )

    @property
    def hold_bound_seconds(self) -> float:
        """Longest time the launch script waits for requests in flight: quiet, drain, and 5 s of slack."""
        return self.quiet_seconds + self.drain_seconds + 5.0


SETTINGS: Final[tuple[Setting, ...]] = tuple(Setting(field=f.name, **f.metadata) for f in dataclasses.fields(Config))
