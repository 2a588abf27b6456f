"""`wings-proxy serve`: everything is put together here, started in order, and ended in order.

The listener comes first, so that the kubelet's probes are answered while everything else starts. The process lives as
long as the supervisor: drained, it ends with 0; broken, with a traceback and 1, never as a zombie that answers 200.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from wings_proxy import __version__
from wings_proxy.admission import ForwardSettings
from wings_proxy.api_keys import ApiKeys, ApiKeysError, parse_keys
from wings_proxy.app import Runner, make_app, make_dispatcher
from wings_proxy.config import Config
from wings_proxy.config_drift import ConfigFile
from wings_proxy.config_load import ConfigError
from wings_proxy.engines import ENGINES
from wings_proxy.forward import Forwarder
from wings_proxy.inflight import Inflight
from wings_proxy.launch import render
from wings_proxy.launch_spec import launch_spec
from wings_proxy.lifecycle import Rules, Snapshot, Transition
from wings_proxy.log import set_up_logging
from wings_proxy.metrics import RequestMetrics
from wings_proxy.probe import HealthProbe, Prober
from wings_proxy.routes import Routes
from wings_proxy.state_metrics import StateMetrics
from wings_proxy.status import Status
from wings_proxy.supervisor import Supervisor
from wings_proxy.upstream import Pool
from wings_proxy.volume import Volume

_log = logging.getLogger(__name__)

# What is left when the drain is over was cut on purpose and needs only its last bytes sent.
_FAREWELL_SECONDS: Final = 1.0
_BACKLOG: Final = 1024
_EXIT_SECOND_SIGNAL: Final = 128 + signal.SIGTERM


def run_serve(config: Config, config_file: ConfigFile | None = None) -> int:
    """Run the sidecar until it is told to stop; return the exit code. Raises `ConfigError` before anything starts.

    `config_file` is where the configuration came from, to tell when it has changed.
    """
    set_up_logging(form=config.log_format, level=config.log_level, access=config.access_log)
    engine_key = _engine_key(config)
    loop_factory = _loop_factory(config)
    _settle_garbage()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            return runner.run(serve(config, engine_key, config_file))
        except asyncio.CancelledError:
            return _EXIT_SECOND_SIGNAL


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    if config.event_loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # only here: WINGS_EVENT_LOOP=asyncio must do where it cannot be installed

    return uvloop.new_event_loop


def _settle_garbage() -> None:
    """Keep the collector out of the streams' way.

    What was imported lives as long as the process: the collector need not look at it again. What a request allocates
    is freed by reference counts; a pass over all streams' objects is a pause for every one of them (25 to 40 ms at a
    thousand streams), so it comes rarely. Far larger first thresholds make the small passes long instead.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 50, 100)


async def serve(config: Config, engine_key: bytes | None, config_file: ConfigFile | None = None) -> int:
    """Put the sidecar together and run it until it may leave; return the exit code."""
    loop = asyncio.get_running_loop()
    engine = ENGINES[config.engine_type]
    api_keys = await _client_keys(config)

    inflight = Inflight(time.monotonic)
    routes = Routes(engine, allow_admin=config.allow_admin, allow_all=config.allow_all_paths)
    metrics = RequestMetrics(routes.templates)
    settings = _forward_settings(config, engine_key)
    pool = Pool(
        loop,
        config.engine_port,
        connect_timeout_seconds=config.connect_timeout_seconds,
        idle_seconds=engine.keep_alive_seconds,
    )
    probe = HealthProbe(
        engine, config.engine_port, timeout=config.probe_timeout_seconds, api_key=engine_key, clock=time.monotonic
    )
    prober = Prober(probe, interval=config.probe_interval_seconds)
    rules = _rules(config)
    supervisor = Supervisor(
        rules=rules,
        script=render(launch_spec(config, engine)),
        volume=Volume(Path(config.shared_volume_path)),
        pool=pool,
        inflight=inflight,
        prober=prober,
        load_phases=engine.load_phases,
        clock=time.monotonic,
        on_transition=lambda transition, snapshot: _announce(transition, snapshot, state_metrics),
        config_file=config_file,
    )
    state_metrics = StateMetrics(
        metrics.registry,
        snapshot=lambda: supervisor.snapshot,
        clock=time.monotonic,
        build={"version": __version__, "engine_type": engine.name, "model_name": config.model_name},
    )
    forwarder = Forwarder(
        settings,
        pool=pool,
        inflight=inflight,
        metrics=metrics,
        gate=supervisor.gate,
        authorize=api_keys,
        # What a request runs into is news before the next probe is due.
        on_fault=lambda _: prober.soon(),
    )
    status = Status(
        rules=rules,
        snapshot=lambda: supervisor.snapshot,
        came_round_at=lambda: supervisor.came_round_at,
        clock=time.monotonic,
    )
    app = make_app(engine=engine, status=status, registry=metrics.registry)
    _handle_signals(loop, _Stop(supervisor, forwarder))
    runner = Runner(
        app,
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=_FAREWELL_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None
    runner.server.request_handler = make_dispatcher(routes, forwarder, runner.server.request_handler)
    try:
        if not await _listen(runner, config):
            return 1
        async with probe, asyncio.TaskGroup() as group:
            reload = group.create_task(api_keys.watch(), name="API key reload") if api_keys is not None else None
            await group.create_task(supervisor.run(), name="supervisor")
            if reload is not None:
                reload.cancel()
    finally:
        forwarder.cut_all()
        await runner.cleanup()
        pool.close()
    return 0


async def _listen(runner: web.AppRunner, config: Config) -> bool:
    try:
        await web.TCPSite(runner, config.host or None, config.port, backlog=_BACKLOG).start()
    except OSError as error:
        where = f"WINGS_PORT={config.port}" + (f" on WINGS_HOST={config.host}" if config.host else "")
        print(f"{where}: cannot listen: {_why(error)}", file=sys.stderr)
        return False
    fields = {"port": config.port, "engine": config.engine_type, "version": __version__}
    _log.info("listening", extra={"fields": fields})
    if config.trust_remote_code and "--trust-remote-code" in ENGINES[config.engine_type].argv(config):
        _log.warning("TRUST_REMOTE_CODE is on: the engine runs Python code that comes with the model")
    return True


def _why(error: OSError) -> str:
    # asyncio wraps the system's words into a sentence of its own; a name that does not resolve has no such words.
    return error.strerror or str(error) if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)


class _Stop:
    """What SIGTERM and SIGINT do: the first drains, the second ends at once."""

    def __init__(self, supervisor: Supervisor, forwarder: Forwarder) -> None:
        self._supervisor = supervisor
        self._forwarder = forwarder
        self._main = asyncio.current_task()

    def __call__(self) -> None:
        """Take one signal."""
        if self._forwarder.closing:
            _log.warning("second signal: ending at once")
            assert self._main is not None
            self._main.cancel()
            return
        _log.info("asked to stop: draining")
        self._forwarder.closing = True
        self._supervisor.drain()


def _handle_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    # Before anything listens: process number 1 of a container loses a SIGTERM it has no handler for.
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    # A terminal that closes, or an operator's habit: nothing here is reloaded by it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _announce(transition: Transition, snapshot: Snapshot, metrics: StateMetrics) -> None:
    metrics.changed(transition, snapshot)
    _log.info(
        "%s -> %s",
        transition.source,
        transition.target,
        extra={
            "fields": {
                "event": transition.event,
                "reason": snapshot.reason,
                "detail": snapshot.detail,
                "after_seconds": round(transition.lasted, 3),
                "run": snapshot.run,
            }
        },
    )


def _rules(config: Config) -> Rules:
    return Rules(
        probe_failures=config.probe_failures,
        probe_successes=config.probe_successes,
        startup_timeout=config.startup_timeout_seconds,
        quiet=config.quiet_seconds,
        drain=config.drain_seconds,
        engine_kill=config.engine_kill_seconds,
        load_kill=config.load_kill_seconds,
    )


def _forward_settings(config: Config, engine_key: bytes | None) -> ForwardSettings:
    return ForwardSettings(
        engine_port=config.engine_port,
        connect_timeout_seconds=config.connect_timeout_seconds,
        first_byte_timeout_seconds=config.first_byte_timeout_seconds,
        idle_timeout_seconds=config.idle_timeout_seconds,
        write_stall_seconds=config.write_stall_seconds,
        max_body_bytes=config.max_body_bytes,
        max_inflight=config.max_inflight or None,
        engine_authorization=None if engine_key is None else b"Bearer " + engine_key,
    )


def _engine_key(config: Config) -> bytes | None:
    """Return the key the engine asks for."""
    if not config.engine_api_key_file:
        return None
    name = f"WINGS_ENGINE_API_KEY_FILE={config.engine_api_key_file}"
    try:
        keys = parse_keys(Path(config.engine_api_key_file).read_bytes())
    except OSError as error:
        raise ConfigError((f"{name}: cannot be read: {error.strerror}",)) from None
    except ValueError as error:
        raise ConfigError((f"{name}: {error}",)) from None
    if len(keys) != 1:
        raise ConfigError((f"{name}: must hold one key, holds {len(keys)}",))
    return next(iter(keys))


async def _client_keys(config: Config) -> ApiKeys | None:
    """Return the keys clients must have one of."""
    if not config.api_keys_file:
        return None
    keys = ApiKeys(Path(config.api_keys_file))
    try:
        await keys.load()
    except ApiKeysError as error:
        raise ConfigError((f"WINGS_API_KEYS_FILE={config.api_keys_file}: {error}",)) from None
    return keys
