"""The fake engine as a program, started by the command line of the real one: `python -m tests.fake --port 8000 …`.

It takes the flags of all three engines (those it has no use for are ignored) and switches as `--fake NAME=VALUE`,
any number of times, or as JSON in the variable FAKE_ENGINE; NAME is a field of FakeSettings.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.fake.counters import Counters
from tests.fake.engine import FakeEngine
from tests.fake.failures import NAMES, failure
from tests.fake.logs import Log, Output
from tests.fake.settings import FakeSettings, Flavour, Stop

_NAMES = {
    "--model": "model",
    "--model-path": "model",
    "--host": "host",
    "--port": "port",
    "--max-model-len": "max_model_len",
    "--context-length": "max_model_len",
    "-c": "max_model_len",
    "--ctx-size": "max_model_len",
    "--max-num-seqs": "max_num_seqs",
    "--max-running-requests": "max_num_seqs",
    "-np": "max_num_seqs",
    "--parallel": "max_num_seqs",
    "--api-key": "api_key",
    "--alias": "served_names",
}
_SWITCHES = {
    "--enable-request-id-headers": "request_id_headers",
    "--enable-server-load-tracking": "load_tracking",
    "--enable-auto-tool-choice": "tool_parser",
}


def settings_from(argv: Sequence[str], environ: Mapping[str, str]) -> FakeSettings:
    """Read settings from an engine's command line and from FAKE_ENGINE; ValueError names a wrong switch."""
    settings = FakeSettings(port=8000)
    changes: dict[str, object] = {}
    for flag, values in _flags(argv):
        value = values[0] if values else ""
        if flag == "-m" and value.startswith(("vllm", "sglang")):
            changes["flavour"] = value.split(".")[0]
        elif flag == "-m":
            changes |= {"flavour": Flavour.LLAMACPP, "model": value}
        elif flag == "--served-model-name":
            changes["served_names"] = tuple(values)
        elif flag == "--shutdown-timeout":
            changes["stop"] = Stop.ABORT if value == "0" else Stop.DRAIN_REFUSING
        elif flag == "--fake":
            name, _, text = value.partition("=")
            changes[name] = text
        elif flag in _NAMES and values:
            changes[_NAMES[flag]] = value
        elif flag in _SWITCHES:
            changes[_SWITCHES[flag]] = True
    changes |= json.loads(environ.get("FAKE_ENGINE", "{}"))
    settings.change(changes)
    if settings.start_failure and settings.start_failure not in NAMES:
        raise ValueError(f"start_failure={settings.start_failure!r}: there are {', '.join(NAMES)}")
    if settings.flavour is Flavour.LLAMACPP:
        # `-c` is the context of all slots together.
        settings.max_model_len //= settings.max_num_seqs
    return settings


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the words that follow it."""
    flag, values = "", list[str]()
    for word in argv:
        if word.startswith("-"):
            yield flag, values
            flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            values = [value] if equals else []
        else:
            values.append(word)
    yield flag, values


def write_shims(directory: Path) -> None:
    """Write `python3` and `llama-server` that start the fake in the engine's place: put `directory` first in PATH."""
    root = Path(__file__).parent.parent.parent
    for name, flavour in (("python3", ""), ("llama-server", "--fake flavour=llamacpp ")):
        shim = directory / name
        shim.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m tests.fake {flavour}"$@"\n')
        shim.chmod(0o755)


def _write(output: Output) -> None:
    stream = sys.stderr if output.stderr else sys.stdout
    stream.buffer.write(output.text.encode())
    stream.buffer.flush()


async def _run(settings: FakeSettings, children: Sequence[subprocess.Popen[bytes]]) -> None:
    def leave(code: int) -> None:
        # A crash leaves its children behind, as vLLM's API server does.
        if engine.stopping:
            for child in children:
                child.kill()
                child.wait()
        if code < 0:
            loop.remove_signal_handler(signal.SIGTERM)
            os.kill(os.getpid(), -code)
        os._exit(code)

    engine = FakeEngine(settings, write=_write, leave=leave)
    loop = asyncio.get_running_loop()
    pending: set[asyncio.Task[None]] = set()

    def begin(work: str) -> None:
        task = loop.create_task(engine.terminate() if work == "terminate" else engine.kill_core())
        pending.add(task)
        task.add_done_callback(pending.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin, "terminate")
    loop.add_signal_handler(signal.SIGUSR1, begin, "kill_core")
    try:
        await engine.start()
    except OSError:
        await _fail("port_in_use", settings)
    await asyncio.Event().wait()


async def _fail(name: str, settings: FakeSettings) -> None:
    """Print what a failed start of the real engine prints, and end with its exit code."""
    code, output = failure(name, Log(settings, Counters()))
    pieces = list(output)
    for piece in pieces:
        _write(piece)
        await asyncio.sleep(settings.boot_seconds / len(pieces))
    os._exit(code)


def main() -> None:
    settings = settings_from(sys.argv[1:], os.environ)
    if settings.start_failure:
        asyncio.run(_fail(settings.start_failure, settings))
    children = [subprocess.Popen(["sleep", "3600"]) for _ in range(settings.children)]
    asyncio.run(_run(settings, children))
