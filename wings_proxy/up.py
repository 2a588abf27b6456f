"""`wings-proxy up`: sidecar and engine on one machine, through the same launch script and volume as in a pod."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from wings_proxy.api_keys import parse_keys
from wings_proxy.ask import ask as ask_model
from wings_proxy.ask import first_model
from wings_proxy.default_model import ModelError, ensure_model
from wings_proxy.narrator import Narrator, base_url, exit_words, ready_lines
from wings_proxy.pod import Ended, Pod
from wings_proxy.private_directory import places, private_directory
from wings_proxy.up_containers import ENGINE, SIDECAR, containers, last_lines
from wings_proxy.up_plan import Plan, make_plan, obstacles

T = TypeVar("T")

EXIT_FAILED: Final = 1
EXIT_NOT_STARTED: Final = 2
EXIT_FORCED: Final = 128 + signal.SIGINT

# `serve` ends so when its configuration is wrong: no restart can help.
_SIDECAR_EXIT_CONFIG: Final = 2
# A kubelet never gives up; a person in front of a terminal is better told.
_STARTS_WITHOUT_SUCCESS: Final = 3

_LOADING_POLL_SECONDS: Final = 0.2
_READY_POLL_SECONDS: Final = 2.0
_HEALTH_SECONDS: Final = 5.0
# What the protocol's own bounds leave for the processes to end in.
_STOP_SLACK_SECONDS: Final = 10.0


async def up(environ: Mapping[str, str], *, ask: Sequence[str], once: bool) -> int:
    """Run both until Ctrl-C, or with `once` until every text of `ask` is answered; return the exit code.

    0: stopped, or all answered; 1: could not go on, or an answer failed; 2: nothing was started, because of what was
    said; 130: ended by force. Raises `ConfigError`.
    """
    # First of all: a Ctrl-C that comes early must not end in a traceback.
    with StopSignals() as stop:
        plan = make_plan(environ)
        if lines := list(obstacles(plan)):
            for line in lines:
                say(line)
            return EXIT_NOT_STARTED
        try:
            if plan.default_model and await _unless(stop.asked, ensure_model(environ, say)) is None:
                return EXIT_FAILED if once else 0
            with private_directory(places(environ)) as directory:
                return await _Run(plan, directory, ask=ask, once=once).until(stop)
        except ModelError as error:
            say(str(error))
            return EXIT_FAILED
        except OSError as error:
            say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            return EXIT_FAILED


def say(line: str) -> None:
    """Print one line for the person at the terminal; standard output is for answers."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"wings-proxy: {line}", file=sys.stderr, flush=True)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as events: the first asks for the end, the second forces it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.forced = asyncio.Event()

    def __enter__(self) -> StopSignals:
        for number in self._numbers():
            asyncio.get_running_loop().add_signal_handler(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._numbers():
            asyncio.get_running_loop().remove_signal_handler(number)

    def note(self) -> None:
        """Take note of one signal."""
        (self.forced if self.asked.is_set() else self.asked).set()

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

    def __init__(self, plan: Plan, directory: Path, *, ask: Sequence[str], once: bool) -> None:
        self._plan = plan
        self._questions = ask
        self._once = once
        self._url = base_url(plan.config)
        self._specs = {spec.name: spec for spec in containers(plan, directory)}
        self._told = dict.fromkeys(self._specs, 0)  # how far into its log each one's last words were told
        self._pod = Pod(list(self._specs.values()))
        self._narrator = Narrator()
        self._ready = asyncio.Event()
        self._failures = 0
        self._started = asyncio.get_running_loop().time()
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def until(self, stop: StopSignals) -> int:
        """Run the pod until a stop is asked for or there is nothing more to do; return the exit code."""
        note = " (tiny: it shows that everything works, not what a model can do)" if self._plan.default_model else ""
        say(f"model {self._plan.config.model_name}{note}, engine {self._plan.config.engine_type}")
        say(f"engine log {self._specs[ENGINE].log}")
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._pod.run(self._ended), name="pod")
            others = [
                group.create_task(self._monitor(), name="monitor"),
                group.create_task(self._serve_user(), name="user"),
                group.create_task(self._stop_asked(stop), name="wait for a stop"),
            ]
            code = await self._exit_code
            for task in others:
                task.cancel()
            self._pod.stop()
            config = self._plan.config
            bound = config.hold_bound_seconds + config.engine_stop_seconds + _STOP_SLACK_SECONDS
            forcing = group.create_task(stop.forced.wait(), name="wait for force")
            await asyncio.wait({running, forcing}, timeout=bound, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                say("ending everything at once")
                self._pod.kill()
                code = EXIT_FORCED if stop.forced.is_set() else EXIT_FAILED
            forcing.cancel()
        say("stopped")
        return code

    def _finish(self, code: int) -> None:
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    async def _stop_asked(self, stop: StopSignals) -> None:
        await stop.asked.wait()
        say("stopping; Ctrl-C again does not wait for requests")
        self._finish(EXIT_FAILED if self._once else 0)

    def _ended(self, ended: Ended) -> None:
        """Tell of a container that ended by itself, and give up on one that cannot live."""
        say(f"{ended.name} {exit_words(ended.code)}")
        lines, self._told[ended.name] = last_lines(self._specs[ended.name].log, self._told[ended.name])
        if ended.code > 0:  # what a signal ended had no time for last words
            for line in lines:
                say(line)
        self._narrator = Narrator()  # from here on the same news are news again
        if ended.name == SIDECAR and ended.code == _SIDECAR_EXIT_CONFIG:
            self._finish(EXIT_NOT_STARTED)
            return
        self._failures += 1
        if self._failures >= _STARTS_WITHOUT_SUCCESS and not self._ready.is_set():
            say(f"{ended.name} failed {self._failures} times without ever being ready: giving up")
            self._finish(EXIT_FAILED)
            return
        say(f"starting {ended.name} again in {ended.restart_seconds:g} s")

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
        for line in self._narrator.tell(body):
            say(f"{line} after {asyncio.get_running_loop().time() - self._started:.1f} s" if first_time else line)
        if first_time:
            self._ready.set()

    async def _serve_user(self) -> None:
        """Once ready: ask what was to be asked, say how to go on."""
        await self._ready.wait()
        try:
            complete = await self._ask_all()
        except BrokenPipeError:
            # Nobody reads the answers any more; what is still buffered must not be tried again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._finish(EXIT_FAILED)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            say(f"cannot ask: {error}")
            self._finish(EXIT_FAILED)
        else:
            if self._once:
                self._finish(0 if complete else EXIT_FAILED)

    async def _ask_all(self) -> bool:
        """Return whether every question got a complete answer."""
        config, complete = self._plan.config, True
        async with aiohttp.ClientSession(headers=_credentials(config.api_keys_file)) as session:
            model = await first_model(session, self._url)
            for question in self._questions:
                say(f"asking: {question}")
                answer = await ask_model(session, self._url, model, question, _write)
                _write("\n")
                say(str(answer))
                complete = complete and answer.problem is None
        for line in ready_lines(config, model):
            say(line)
        return complete


def _credentials(api_keys_file: str) -> Mapping[str, str]:
    if not api_keys_file:
        return {}
    key = min(parse_keys(Path(api_keys_file).read_bytes()))
    return {"Authorization": f"Bearer {key.decode()}"}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
