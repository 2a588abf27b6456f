"""From a configuration to what the launch script is told."""

from __future__ import annotations

from wings_proxy.config.load import load_config
from wings_proxy.engines import ENGINES
from wings_proxy.handover.launch import LaunchSpec
from wings_proxy.handover.launch_spec import launch_spec

MODEL = {"MODEL_PATH": "/m/x", "ENGINE_TYPE": "llamacpp"}
ARGV = ("llama-server", "-m", "/m/x", "--host", "127.0.0.1", "--port", "8000", "-c", "131072", "-np", "32", "--metrics")


def spec(**environ: str) -> LaunchSpec:
    return launch_spec(load_config({**MODEL, **environ}), ENGINES["llamacpp"])


def test_the_command_the_variables_and_the_times() -> None:
    assert spec() == LaunchSpec(argv=(*ARGV, "--alias", "x"), env=(), release_seconds=70, stop_seconds=30)


def test_times_are_rounded_up_since_a_shell_counts_whole_seconds() -> None:
    found = spec(WINGS_QUIET_SECONDS="0.1", WINGS_DRAIN_SECONDS="10", WINGS_ENGINE_STOP_SECONDS="1.5")
    assert (found.release_seconds, found.stop_seconds) == (16, 2)
    found = spec(WINGS_QUIET_SECONDS="0", WINGS_DRAIN_SECONDS="0", WINGS_ENGINE_STOP_SECONDS="0")
    assert (found.release_seconds, found.stop_seconds) == (5, 0)
