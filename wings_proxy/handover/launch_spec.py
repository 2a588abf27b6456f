"""From configuration to launch script: what the engine is started with, and how long its stop may take."""

from __future__ import annotations

import math

from wings_proxy.config.settings import Config
from wings_proxy.engines.base import Engine
from wings_proxy.handover.launch import LaunchSpec


def launch_spec(config: Config, engine: Engine) -> LaunchSpec:
    """Return what the launch script of this configuration is rendered from."""
    return LaunchSpec(
        argv=engine.argv(config),
        env=config.engine_env,
        release_seconds=math.ceil(config.hold_bound_seconds),
        stop_seconds=math.ceil(config.engine_stop_seconds),
    )
