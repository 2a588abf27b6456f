"""`wings-proxy up`: sidecar and engine on one machine, through the same launch script and volume as in a pod."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from wings_proxy.exit_codes import ExitCode
from wings_proxy.handover.volume import HOLD_NAME
from wings_proxy.local.ask import ask as ask_model
from wings_proxy.local.ask import first_model
from wings_proxy.local.containers import ENGINE, SIDECAR, containers, last_lines
from wings_proxy.local.default_model import ModelError, ensure_model
from wings_proxy.local.narrator import Narrator, base_url, exit_words, live_line, ready_lines
from wings_proxy.local.plan import Plan, make_plan, obstacles
from wings_proxy.local.pod import Ended, Pod
from wings_proxy.local.private_directory import places, private_directory
from wings_proxy.local.terminal import Terminal
from wings_proxy.proxy.api_keys import parse_keys
from wings_proxy.stop_requests import StopRequests

T = TypeVar("T")

# The engine did not take its arguments, or its command is not there: every further start would end so, too.
_ENGINE_EXITS_FOR_GOOD: Final = frozenset({2, 126, 127})
# A kubelet never gives up; a person in front of a terminal is better told.
_STARTS_WITHOUT_SUCCESS: Final = 3

_LOADING_POLL_SECONDS: Final = 0.2
_READY_POLL_SECONDS: Final = 2.0
_HEALTH_SECONDS: Final = 5.0
# What the protocol's own bounds leave for the processes to end in.
_STOP_SLACK_SECONDS: Final = 10.0


async def up(environ: Mapping[str, str], *, ask: Sequence[str], once: bool) -> int:
    """Run both until Ctrl-C, or with `once` until every text of `ask` is answered; return the exit code.

    Raises `ConfigError`.
    """
    terminal = Terminal(sys.stderr, environ)
    say = terminal.say
    # First of all: a Ctrl-C that comes early must not end in a traceback.
    with StopSignals() as stop:
        plan = make_plan(environ)
        for line in plan.warnings:
            say(line)
        if lines := list(obstacles(plan)):
            for line in lines:
                say(line)
            return ExitCode.NOT_STARTED
        try:
            if plan.default_model and await _unless(stop.asked, ensure_model(environ, say)) is None:
                return ExitCode.FAILED if once else ExitCode.DONE
            with private_directory(places(environ)) as directory:
                return await _Run(plan, directory, terminal, ask=ask, once=once).until(stop)
        except ModelError as error:
            say(str(error))
            return ExitCode.FAILED
        except OSError as error:
            say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            return ExitCode.FAILED


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as events: the first asks for the end, the second forces it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()
        self._take = StopRequests(clock, ask=self.asked.set, force=self.forced.set)

    def __enter__(self) -> StopSignals:
        for number in self._numbers():
            asyncio.get_running_loop().add_signal_handler(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._numbers():
            asyncio.get_running_loop().remove_signal_handler(number)

    @staticmethod
    def _numbers() -> Iterator[signal.Signals]:
        yield from (signal.SIGINT, signal.SIGTERM)
        # Whoever runs us under nohup wants us to outlive the terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            yield signal.SIGHUP


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`, or None after cancelling it because the event came first."""
    task = asyncio.create_task(work, name="work")
    waiting = asyncio.create_task(event.wait(), name="wait for a stop")
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    for unfinished in (task, waiting):
        unfinished.cancel()
    await asyncio.wait({task, waiting})
    return None if task.cancelled() else task.result()


class _Run:
    """One run of the pod: what was started where, and whether it has to end."""

    def __init__(self, plan: Plan, directory: Path, terminal: Terminal, *, ask: Sequence[str], once: bool) -> None:
        self._plan = plan
        self._terminal = terminal
        self._say = terminal.say
        self._questions = ask
        self._once = once
        self._url = base_url(plan.config)
        self._specs = {spec.name: spec for spec in containers(plan, directory)}
        self._told = dict.fromkeys(self._specs, 0)  # how far into its log each one's last words were told
        self._pod = Pod(list(self._specs.values()))
        self._narrator = Narrator()
        self._ready = asyncio.Event()
        self._failures = 0
        self._engine_ended: Ended | None = None  # an end whose reason the sidecar has not told yet
        self._started = asyncio.get_running_loop().time()
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def until(self, stop: StopSignals) -> int:
        """Run the pod until a stop is asked for or there is nothing more to do; return the exit code."""
        note = " (tiny: it shows that everything works, not what a model can do)" if self._plan.default_model else ""
        self._say(f"model {self._plan.config.model_name}{note}, engine {self._plan.config.engine_type}")
        self._say(f"engine log {self._specs[ENGINE].log}")
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._pod.run(self._ended), name="pod")
            others = [
                group.create_task(self._monitor(), name="monitor"),
                group.create_task(self._serve_user(), name="user"),
                group.create_task(self._stop_asked(stop), name="wait for a stop"),
            ]
            code = await self._exit_code
            self._terminal.show("")
            for task in others:
                task.cancel()
            self._pod.stop()
            config = self._plan.config
            bound = config.hold_bound_seconds + config.engine_stop_seconds + _STOP_SLACK_SECONDS
            forcing = group.create_task(stop.forced.wait(), name="wait for force")
            await asyncio.wait({running, forcing}, timeout=bound, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                self._say("ending everything at once")
                self._pod.kill()
                code = ExitCode.INTERRUPTED if stop.forced.is_set() else ExitCode.FAILED
            forcing.cancel()
        self._say("stopped")
        return code

    def _finish(self, code: int) -> None:
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    async def _stop_asked(self, stop: StopSignals) -> None:
        await stop.asked.wait()
        self._say("stopping; Ctrl-C again does not wait for requests")
        self._finish(ExitCode.FAILED if self._once else ExitCode.DONE)

    def _ended(self, ended: Ended) -> None:
        """Tell of a container that ended by itself, and give up on one that cannot live."""
        self._say(f"{ended.name} {exit_words(ended.code)}")
        lines, self._told[ended.name] = last_lines(self._specs[ended.name].log, self._told[ended.name])
        if ended.code > 0:  # what a signal ended had no time for last words
            for line in lines:
                self._say(line)
        self._terminal.show("")
        self._narrator = Narrator()  # from here on the same news are news again
        if ended.name == SIDECAR and ended.code == ExitCode.NOT_STARTED:
            # Nothing is forwarded any more, and the engine would wait for the hold of the sidecar before this one.
            Path(self._specs[SIDECAR].env["SHARED_VOLUME_PATH"], HOLD_NAME).unlink(missing_ok=True)
            self._finish(ExitCode.NOT_STARTED)
            return
        self._failures += 1
        if self._failures >= _STARTS_WITHOUT_SUCCESS and not self._ready.is_set():
            self._say(f"{ended.name} failed {self._failures} times without ever being ready: giving up")
            self._finish(ExitCode.FAILED)
        elif ended.name == ENGINE:
            self._engine_ended = ended
        else:
            self._say(_again(ended))

    async def _monitor(self) -> None:
        """Follow the sidecar's view of the engine."""
        timeout = aiohttp.ClientTimeout(total=_HEALTH_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                # A sidecar that is away is told of by `_ended`.
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                    async with session.get(f"{self._url}/health") as response:
                        self._learn(await response.json())
                self._pod.trim_logs()
                await asyncio.sleep(_READY_POLL_SECONDS if self._ready.is_set() else _LOADING_POLL_SECONDS)

    def _learn(self, body: Mapping[str, Any]) -> None:
        first_time = body.get("engine_ready") is True and not self._ready.is_set()
        terminal = self._terminal
        if terminal.is_live:
            colour, width = terminal.has_colour, terminal.width
            terminal.show(live_line(body, self._url, colour=colour, width=width))
        for line in self._narrator.tell(body, steps=not terminal.is_live):
            self._say(f"{line} after {asyncio.get_running_loop().time() - self._started:.1f} s" if first_time else line)
        if first_time:
            self._ready.set()
        if body.get("state") == "failed" and (ended := self._engine_ended) is not None:
            self._engine_ended = None
            self._decide(ended, retryable=(body.get("last_failure") or {}).get("retryable") is not False)

    def _decide(self, ended: Ended, *, retryable: bool) -> None:
        """Say what comes after a failed start, now that its reason has been told."""
        if self._ready.is_set() or (retryable and ended.code not in _ENGINE_EXITS_FOR_GOOD):
            self._say(_again(ended))
        else:
            self._say(f"{ended.name} would fail so again: giving up")
            self._finish(ExitCode.FAILED)

    async def _serve_user(self) -> None:
        """Once ready: ask what was to be asked, say how to go on."""
        await self._ready.wait()
        try:
            complete = await self._ask_all()
        except BrokenPipeError:
            # Nobody reads the answers any more; what is still buffered must not be tried again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._finish(ExitCode.FAILED)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._say(f"cannot ask: {error}")
            self._finish(ExitCode.FAILED)
        else:
            if self._once:
                self._finish(ExitCode.DONE if complete else ExitCode.FAILED)

    async def _ask_all(self) -> bool:
        """Return whether every question got a complete answer."""
        config, complete = self._plan.config, True
        async with aiohttp.ClientSession(headers=_credentials(config.api_keys_file)) as session:
            model = await first_model(session, self._url)
            with self._terminal.hidden():
                for question in self._questions:
                    self._say(f"asking: {question}")
                    answer = await ask_model(session, self._url, model, question, _write)
                    _write("\n")
                    self._say(str(answer))
                    complete = complete and answer.problem is None
        if not self._once:
            for line in ready_lines(config, model):
                self._say(line)
        return complete


def _again(ended: Ended) -> str:
    return f"starting {ended.name} again in {ended.restart_seconds:g} s"


def _credentials(api_keys_file: str) -> Mapping[str, str]:
    if not api_keys_file:
        return {}
    key = min(parse_keys(Path(api_keys_file).read_bytes()))
    return {"Authorization": f"Bearer {key.decode()}"}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
