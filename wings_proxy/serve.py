"""`wings-proxy serve`: everything is put together here, started in order, and ended in order.

The listener comes first, so that the kubelet's probes are answered while everything else starts. The process lives as
long as the supervisor: drained, it ends with 0; broken, with a traceback and 1, never as a zombie that answers 200.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wings_proxy import __version__
from wings_proxy.config.drift import ConfigFile
from wings_proxy.config.load import ConfigError, Resolved
from wings_proxy.config.settings import Config
from wings_proxy.engines import ENGINES
from wings_proxy.engines.failure_reasons import Reason
from wings_proxy.engines.log_stats import LogStats
from wings_proxy.exit_codes import ExitCode
from wings_proxy.handover.disk_threads import DiskThreads
from wings_proxy.handover.launch import render
from wings_proxy.handover.launch_spec import launch_spec
from wings_proxy.handover.volume import Volume
from wings_proxy.handover.volume_lock import VolumeLock
from wings_proxy.lifecycle.engine_log import LogCounts
from wings_proxy.lifecycle.probe import HealthProbe, Prober
from wings_proxy.lifecycle.stall import StallWatch
from wings_proxy.lifecycle.state import Rules, Snapshot, Transition
from wings_proxy.lifecycle.supervisor import Supervisor
from wings_proxy.lifecycle.timeline import Timeline
from wings_proxy.listen_errors import cannot_listen
from wings_proxy.proxy.access_log import AccessLog
from wings_proxy.proxy.admission import ForwardSettings
from wings_proxy.proxy.api_keys import ApiKeys, ApiKeysError
from wings_proxy.proxy.forwarder import Forwarder
from wings_proxy.proxy.inflight import Inflight
from wings_proxy.proxy.key_files import read_key_files
from wings_proxy.proxy.request_metrics import RequestMetrics
from wings_proxy.proxy.upstream import Pool
from wings_proxy.server.access import Access
from wings_proxy.server.app import make_app, make_dispatcher, make_engine_route
from wings_proxy.server.bounded_connection import Bounds
from wings_proxy.server.connection_cap import cap_for, most_for, waiting_for
from wings_proxy.server.descriptor_limit import raise_descriptor_limit
from wings_proxy.server.docs import Docs
from wings_proxy.server.engine_document import EngineDocument
from wings_proxy.server.engine_version import EngineVersion
from wings_proxy.server.listener import Listener
from wings_proxy.server.routes import Routes
from wings_proxy.server.runner import Runner
from wings_proxy.server.status import Status
from wings_proxy.server.status_page import StatusPage
from wings_proxy.stop_requests import StopRequests
from wings_proxy.telemetry.connection_metrics import ConnectionMetrics
from wings_proxy.telemetry.engine_families import EngineFamilies
from wings_proxy.telemetry.engine_scrape import EngineScrape
from wings_proxy.telemetry.engine_work import EngineWork
from wings_proxy.telemetry.log import set_up_logging
from wings_proxy.telemetry.loop_lag import LoopLag
from wings_proxy.telemetry.scrape import MetricsPage
from wings_proxy.telemetry.state_metrics import StateMetrics

_log = logging.getLogger(__name__)

# What is left when the drain is over was cut on purpose and needs only its last bytes sent.
_FAREWELL_SECONDS: Final = 1.0
# As many as Linux allows by itself (net.core.somaxconn). Whom a full backlog turns away tries again a second later, and
# a probe's time-out may be over by then; to wait for all the others that came before takes a third of one.
_BACKLOG: Final = 4096


def run_serve(resolved: Resolved, config_file: ConfigFile | None = None) -> int:
    """Run the sidecar until it is told to stop; return the exit code. Raises `ConfigError` before anything starts.

    `config_file` is where the configuration came from, to tell when it has changed.
    """
    config = resolved.config
    loop_factory = _loop_factory(config)
    engine_key = read_key_files(config)
    lines = set_up_logging(form=config.log_format, level=config.log_level)
    access_log = AccessLog(lines.keep, form=config.log_format) if config.access_log else None
    for line in resolved.warnings:
        _log.warning("%s", line)
    _settle_garbage()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().set_default_executor(DiskThreads())
        try:
            return runner.run(serve(resolved, engine_key, config_file, access_log, lambda: lines.lost))
        except asyncio.CancelledError:
            return ExitCode.TERMINATED


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


async def serve(
    resolved: Resolved,
    engine_key: bytes | None,
    config_file: ConfigFile | None = None,
    access_log: AccessLog | None = None,
    log_lines_lost: Callable[[], int] = int,
) -> int:
    """Put the sidecar together and run it until it may leave; return the exit code."""
    loop, config = asyncio.get_running_loop(), resolved.config
    engine = ENGINES[config.engine_type]
    api_keys = await _client_keys(config)

    descriptors = raise_descriptor_limit()
    inflight = Inflight(time.monotonic)
    routes = Routes(engine, allow_admin=config.allow_admin, allow_all=config.allow_all_paths)
    metrics = RequestMetrics(routes.templates)
    metrics.log_lines_lost = log_lines_lost
    access = Access(api_keys, metrics_auth=config.metrics_auth, origins=config.cors_origins)
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
    prober = Prober(probe, interval=config.probe_interval_seconds, worked=lambda: work.goes_on())  # noqa: PLW0108
    rules, volume_lock = _rules(config), VolumeLock()
    log_stats, log_counts = LogStats(engine.log_reader), LogCounts()
    supervisor = Supervisor(
        rules=rules,
        script=render(launch_spec(config, engine)),
        volume=Volume(Path(config.shared_volume_path), lock=volume_lock),
        pool=pool,
        inflight=inflight,
        prober=prober,
        engine=engine,
        counters=lambda: work.counters(),  # noqa: PLW0108 - made below, as what is looked at needs the snapshot
        ask_for_work=lambda: probe.ask_for_a_token(config.stall_seconds or 0.0),
        stall=None if config.stall_seconds is None else StallWatch(config.stall_seconds),
        clock=time.monotonic,
        on_transition=lambda transition, snapshot: _announce(transition, snapshot, state_metrics, timeline),
        on_look=lambda snapshot: state_metrics.looked(snapshot),  # noqa: PLW0108 - made below
        log_reader=log_stats,
        log_counts=log_counts,
        config_file=config_file,
    )
    state_metrics = StateMetrics(
        metrics.registry,
        snapshot=lambda: supervisor.snapshot,
        clock=time.monotonic,
        build={"version": __version__, "engine_type": engine.name, "model_name": config.model_name},
        failure_reasons=Reason,
    )
    scrape = EngineScrape(
        engine,
        config.engine_port,
        timeout=config.scrape_timeout_seconds,
        max_bytes=config.scrape_max_bytes,
        api_key=engine_key,
        clock=time.monotonic,
        epoch=lambda: supervisor.snapshot.epoch,
        # Who was never ready has no page; who was, and is not said to have ended, may have one.
        listening=lambda: supervisor.snapshot.may_listen,
    )
    work = EngineWork(scrape.page, has_requests=lambda: inflight.at_engine > 0)
    engine_families = EngineFamilies(
        metrics.registry,
        model_name=config.model_name,
        from_log=lambda: log_stats.sample(time.monotonic()),
        log_counts=log_counts,
        succeeded_at=lambda: scrape.succeeded_at,
        clock=time.monotonic,
    )
    metrics_page = MetricsPage(metrics.registry, scrape, engine_families)
    lag = LoopLag(metrics.registry, clock=time.monotonic)
    forwarder = Forwarder(
        settings,
        pool=pool,
        inflight=inflight,
        metrics=metrics,
        gate=supervisor.gate,
        authorize=api_keys,
        # What a request runs into is news before the next probe is due.
        on_fault=lambda _: prober.soon(),
        access_log=access_log,
    )
    status = Status(
        rules=rules,
        snapshot=lambda: supervisor.snapshot,
        came_round_at=lambda: supervisor.came_round_at,
        clock=time.monotonic,
    )
    timeline = Timeline(supervisor.snapshot)
    app = make_app(
        status=status,
        page=StatusPage(
            status=status,
            metrics=metrics,
            timeline=timeline,
            engine=metrics_page.figures,
            engine_version=EngineVersion(config.engine_port, engine, engine_key, lambda: supervisor.snapshot).get,
            settings=tuple(resolved.lines()),
            engine_type=engine.name,
            model_name=config.model_name,
            host=socket.gethostname(),
            clock=time.monotonic,
        ),
        docs=Docs(
            engine.inference_paths,
            model=engine.served_model(config),
            asks_key=api_keys is not None,
            engine_document=engine.document_path is not None,
        ),
        engine_document=EngineDocument(config.engine_port, engine, engine_key, lambda: supervisor.snapshot),
        metrics=metrics_page,
        access=access,
    )
    main = asyncio.current_task()
    assert main is not None
    leave_by = 0.0  # until then a client may take the end of its answer

    def ask() -> None:
        nonlocal leave_by
        _log.info("asked to stop: draining")
        leave_by = time.monotonic() + rules.quiet + rules.drain
        forwarder.closing = True
        runner.leave()
        supervisor.drain()

    def force() -> None:
        nonlocal leave_by
        _log.warning("second signal: ending at once")
        leave_by = 0.0
        main.cancel()

    _handle_signals(loop, StopRequests(time.monotonic, ask=ask, force=force))
    runner = Runner(
        app,
        forwarder,
        make_engine_route(routes),
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=_FAREWELL_SECONDS,
        keepalive_timeout=config.keepalive_timeout_seconds,
        bounds=Bounds(head_seconds=config.header_timeout_seconds, farewell_seconds=config.write_stall_seconds),
        most_connections=_most_connections(config, descriptors),
        patience=lambda: max(_FAREWELL_SECONDS, leave_by - time.monotonic()),
        on_refusal=metrics.refused,
        origin_lines=access.allowed_lines,
    )
    await runner.setup()
    assert runner.server is not None
    ConnectionMetrics(metrics.registry, runner.connections)
    runner.server.request_handler = make_dispatcher(routes, runner.server.request_handler, access, metrics.refused)
    try:
        if not await _listen(runner, config, descriptors):
            return ExitCode.FAILED
        async with probe, scrape, asyncio.TaskGroup() as group:
            lag.start(loop)
            reload = group.create_task(api_keys.watch(), name="API key reload") if api_keys is not None else None
            await group.create_task(supervisor.run(), name="supervisor")
            if reload is not None:
                reload.cancel()
    finally:
        lag.stop()
        forwarder.cut_all()
        await runner.cleanup()
        pool.close()
        volume_lock.release()
    return ExitCode.DONE


def _most_connections(config: Config, descriptors: int) -> int:
    if not config.max_connections:
        return cap_for(descriptors)
    most = most_for(descriptors)
    if config.max_connections > most:
        _log.warning(
            "WINGS_MAX_CONNECTIONS=%d is more than %d file descriptors carry: %d it is",
            config.max_connections,
            descriptors,
            most,
        )
    return min(config.max_connections, most)


async def _listen(runner: Runner, config: Config, descriptors: int) -> bool:
    try:
        await Listener(
            runner,
            config.host or None,
            config.port,
            backlog=_BACKLOG,
            silence_seconds=config.write_stall_seconds,
            most_waiting=waiting_for(descriptors, runner.connections.most),
        ).start()
    except OSError as error:
        print(cannot_listen("WINGS_PORT", config.port, error, host=config.host), file=sys.stderr)
        return False
    fields = {"port": config.port, "engine": config.engine_type, "version": __version__}
    _log.info("listening", extra={"fields": fields})
    if config.trust_remote_code and "--trust-remote-code" in ENGINES[config.engine_type].argv(config):
        _log.warning("TRUST_REMOTE_CODE is on: the engine runs Python code that comes with the model")
    return True


def _handle_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    # Before anything listens: process number 1 of a container loses a SIGTERM it has no handler for.
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    # A terminal that closes, or an operator's habit: nothing here is reloaded by it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _announce(transition: Transition, snapshot: Snapshot, metrics: StateMetrics, timeline: Timeline) -> None:
    metrics.changed(transition)
    timeline.changed(snapshot)
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
        body_patience_seconds=config.body_timeout_seconds,
        max_body_bytes=config.max_body_bytes,
        max_inflight=config.max_inflight or None,
        engine_authorization=None if engine_key is None else b"Bearer " + engine_key,
    )


async def _client_keys(config: Config) -> ApiKeys | None:
    """Return the keys clients must have one of."""
    if not config.api_keys_file:
        return None
    keys = ApiKeys(Path(config.api_keys_file))
    try:
        await keys.load()
    except ApiKeysError as error:
        raise ConfigError((f"WINGS_API_KEYS_FILE: {error}",)) from None  # it has changed since it was looked at
    return keys
