"""`wings-proxy up` with the real vLLM on a CPU and a model of random weights, for tests marked `engine`.

`make test-vllm` makes the environment and the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pod import ROOT
from tests.ports import free_port
from tests.up_process import UpProcess
from wings_proxy.local.process_tree import descendants, read_processes

ENVIRONMENT = ROOT / ".venv-vllm"
MODEL = ENVIRONMENT / "tiny-qwen2"
CONTEXT = 8192
# Requests it runs at once: more wait, which is what some of the stories are about.
SLOTS = 4
# No executor but `uni` can be meant on one processor; on a CPU vLLM makes a worker process of it all the same.
FLAGS = [
    "--enforce-eager",
    "--distributed-executor-backend=uni",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    # A random model would fill a page with the blanks that JSON allows.
    '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
]
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # GiB; the default is most of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
# vLLM's list of paths, and a line for each look of ours.
_DULL = re.compile(r"Route: |\"GET /(?:health|metrics|v1/models) |^ {20}\[--")


def needs_vllm() -> None:
    """Skip where vLLM is not installed; in CI that is a failure."""
    missing = [str(path.relative_to(ROOT)) for path in (ENVIRONMENT / "bin" / "python3", MODEL) if not path.exists()]
    if missing:
        assert not os.environ.get("CI"), f"CI must run this: `make test-vllm` makes {', '.join(missing)}"
        pytest.skip(f"no {' and no '.join(missing)}: `make test-vllm` makes them (3.4 GB)")


@dataclass(frozen=True, slots=True)
class Seen:
    """What /health and /livez/engine said from `at` on (monotonic seconds)."""

    at: float
    state: str
    reason: str
    phase: str
    run: str | None
    restarts: int
    engine_alive: int  # the status code of /livez/engine


class Timeline:
    """Looks at /health ten times a second from another thread, and keeps what changed."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self.seen: list[Seen] = []
        self.began = time.monotonic()
        self._look = look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="timeline")
        self._thread.start()

    def _follow(self) -> None:
        while not self._over.wait(0.1):
            now = self._look()
            last = self.seen[-1] if self.seen else None
            if last is None or now != Seen(now.at, *_without_time(last)):
                self.seen.append(now)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def since(self, moment: float) -> list[Seen]:
        """Return what was seen from `moment` on, beginning with what was the case then."""
        before = [seen for seen in self.seen if seen.at < moment][-1:]
        return before + [seen for seen in self.seen if seen.at >= moment]

    def lines(self, since: float | None = None) -> list[str]:
        """Return a line for each change, with the seconds since the start."""
        return [
            f"{seen.at - self.began:7.1f} s  {seen.state:<9} {seen.phase or seen.reason:<24} "
            f"/livez/engine {seen.engine_alive}  run {(seen.run or '-')[:8]}  restarts {seen.restarts}"
            for seen in (self.seen if since is None else self.since(since))
        ]


def _without_time(seen: Seen) -> tuple[str, str, str, str | None, int, int]:
    return seen.state, seen.reason, seen.phase, seen.run, seen.restarts, seen.engine_alive


class VllmUp(UpProcess):
    """A running `up` whose engine is vLLM."""

    # A start takes 45 s on two idle processors, and several times that on busy ones.
    patience_seconds = 300.0

    def __init__(self, directory: Path, *flags: str, **environ: str) -> None:
        """Start it; `flags` are further arguments of vLLM, `environ` more or other variables."""
        port, self.engine_port = free_port(), free_port()
        self.directory = directory
        super().__init__(
            directory,
            port,
            **{
                "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
                "ENGINE_TYPE": "vllm",
                "MODEL_PATH": str(MODEL),
                "MAX_MODEL_LEN": str(CONTEXT),
                "MAX_NUM_SEQS": str(SLOTS),
                "ENGINE_PORT": str(self.engine_port),
                "ENGINE_EXTRA_ARGS": shlex.join([*FLAGS, *flags]),
                "WINGS_LOG_FORMAT": "json",
                **_OFFLINE,
                **environ,
            },
        )
        self.engine_url = f"http://127.0.0.1:{self.engine_port}"
        self.timeline = Timeline(self._look)

    def _look(self) -> Seen:
        body = self.health()
        return Seen(
            at=time.monotonic(),
            state=body.get("state", "gone"),
            reason=body.get("reason", ""),
            phase=(body.get("progress") or {}).get("phase", ""),
            run=body.get("run"),
            restarts=body.get("restarts", 0),
            engine_alive=self.status_of("/livez/engine"),
        )

    def status_of(self, path: str) -> int:
        """Return the status of one of the sidecar's own paths; 0 if it does not answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def until_ready(self, not_in: str | None = None) -> dict[str, Any]:
        """Wait until it is ready, in another run than `not_in`; return the body of /health."""

        def ready() -> bool:
            assert self.process.poll() is None, f"`up` has ended: {self.said[-1]}"
            last = self.timeline.seen[-1:]
            return bool(last) and last[0].state == "ready" and last[0].run != not_in

        self.until(ready)
        return self.health()

    # The engine, seen from behind.

    def metric(self, name: str) -> float:
        """Return the sum of one of vLLM's own metrics, asked for on its own port."""
        with urllib.request.urlopen(f"{self.engine_url}/metrics", timeout=30) as response:
            text = response.read().decode()
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))

    def running(self) -> int:
        """Return how many requests it works on."""
        return int(self.metric("vllm:num_requests_running"))

    def waiting(self) -> int:
        """Return how many wait for a slot."""
        return int(self.metric("vllm:num_requests_waiting"))

    def in_flight(self) -> int:
        """Return how many requests the sidecar has admitted and not ended."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            [line] = [line for line in response.read().splitlines() if line.startswith(b"wings_requests_in_flight ")]
        return int(float(line.split()[1]))

    def tree(self) -> dict[int, str]:
        """Return the command line of every process below `up`: vLLM's own have no environment to be recognised by."""
        parents = {process.pid: process.parent for process in read_processes() if not process.dead}
        lines = {}
        for pid in descendants(self.process.pid, parents):
            with contextlib.suppress(OSError):
                lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return lines

    def engine_processes(self) -> dict[int, str]:
        """Return vLLM's processes: the server and what it started, by whatever name."""
        tree = self.tree()
        groups = {pid for pid, line in tree.items() if "vllm.entrypoints" in line and "start_command.sh" not in line}
        found = {}
        for pid, line in tree.items():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) in groups:
                    found[pid] = line
        return found

    def give_way(self) -> None:
        """Let everybody else run before the engine, as the sidecar's CPU request does in a pod.

        Linux shares its processors among sessions (sched(7), autogroups); where there are only two, a sidecar beside an
        engine that wants both was seen to be runnable for 17 s before it ran.
        """
        for pid in self.engine_processes():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text("19")
                return

    def shared_memory(self) -> set[Path]:
        """Return the files of /dev/shm that vLLM's processes have in their memory, where they have names there."""
        found = set()
        for pid in self.engine_processes():
            with contextlib.suppress(OSError):
                found |= set(re.findall(r"/dev/shm/\S+$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE))
        return {Path(name) for name in found if Path(name).exists()}

    @property
    def core(self) -> int:
        """The process that computes, or has it computed: `VLLM::EngineCore`."""
        [pid] = [pid for pid, line in self.engine_processes().items() if line.startswith("VLLM::EngineCore")]
        return pid

    @property
    def server(self) -> int:
        """The process that listens."""
        [pid] = [pid for pid, line in self.engine_processes().items() if "vllm.entrypoints" in line]
        return pid

    @property
    def sidecar(self) -> int | None:
        """The sidecar's process, None while there is none."""
        return next((pid for pid, line in self.tree().items() if line.endswith("wings_proxy serve")), None)

    # What was told.

    def log_file(self, name: str) -> Path:
        """Return where `up` keeps the log of its `sidecar` or `engine`."""
        return self.directory / ".local" / "state" / "wings-infer" / f"{name}-{self.url.rpartition(':')[2]}.log"

    def log(self) -> list[dict[str, Any]]:
        """All whole log lines of the sidecar, oldest first."""
        try:
            lines = self.log_file("sidecar").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def changes(self) -> list[Mapping[str, Any]]:
        """The transitions the sidecar logged, over all its runs."""
        return [line for line in self.log() if " -> " in line["message"] and "event" in line]

    def story(self) -> str:
        """Everything it told, for a test that failed: our own logs, and the end of vLLM's."""
        parts = ["--- up", super().story(), "--- timeline", *self.timeline.lines()]
        for name in ("sidecar", "engine"):
            with contextlib.suppress(FileNotFoundError):
                lines = self.log_file(name).read_text(errors="replace").splitlines()
                parts += [f"--- {name}", *[line[:400] for line in lines if not _DULL.search(line)][-60:]]
        return "\n".join(parts)

    def kill(self) -> None:
        """End everything, in whatever state it is, `up` last: it adopts what loses its parent."""
        self.timeline.stop()
        # Stopped it does not start again what dies, and still has its children.
        self.process.send_signal(signal.SIGSTOP)
        while tree := self.tree():
            for pid in tree:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        super().kill()


@contextmanager
def vllm_up(directory: Path, *flags: str, **environ: str) -> Iterator[VllmUp]:
    """Run it for the block, and leave nothing behind."""
    needs_vllm()
    run = VllmUp(directory, *flags, **environ)
    try:
        yield run
    finally:
        run.kill()
