"""Containers are started again as a kubelet would, until they are stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from wings_proxy.local.pod import BackOff, Container, ContainerSpec, Ended, Pod


def test_delays_double_up_to_half_a_minute() -> None:
    back_off = BackOff()

    assert [back_off.after(0.1) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_healthy_minute_starts_the_delays_anew() -> None:
    back_off = BackOff()
    for _ in range(5):
        back_off.after(59.9)

    assert [back_off.after(60.0), back_off.after(1.0)] == [1, 2]


class Slow(BackOff):
    """Delays that no test waits for."""

    def after(self, ran_seconds: float) -> float:
        return 3600.0


class Quick(BackOff):
    """Delays that a test can wait for."""

    def after(self, ran_seconds: float) -> float:
        return super().after(ran_seconds) / 1000


class Life:
    """A container that runs `script`, with everything that is told of it."""

    def __init__(self, directory: Path, script: str) -> None:
        self.log = directory / "log"
        spec = ContainerSpec("engine", ("sh", "-c", script), {"PATH": os.environ["PATH"]}, self.log)
        self.container = Container(spec, prefix=(), back_off=Quick())
        self.ends: list[Ended] = []
        self.cleaned = 0
        self.after_ends = -1
        self.ended = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.timeout(40):
            await self.container.run(self._ended, self._clean)

    async def _clean(self) -> None:
        assert self.container.pid is None
        self.cleaned += 1

    def _ended(self, ended: Ended) -> None:
        self.ends.append(ended)
        self.ended.set()
        if len(self.ends) == self.after_ends:
            self.container.stop()

    async def said(self, text: str) -> None:
        async with asyncio.timeout(40):
            while not (self.log.exists() and text in self.log.read_text()):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)


async def test_whatever_ends_is_cleaned_up_after_and_started_again(tmp_path: Path) -> None:
    life = Life(tmp_path, "echo run; echo trouble >&2; exit 3")
    life.after_ends = 3

    await life.run()

    assert life.ends == [Ended("engine", 3, 0.001), Ended("engine", 3, 0.002), Ended("engine", 3, 0.004)]
    assert life.cleaned == 3
    assert life.log.read_text() == "run\ntrouble\n" * 3


async def test_an_end_by_signal_is_told_as_such(tmp_path: Path) -> None:
    life = Life(tmp_path, "kill -s KILL $$")
    life.after_ends = 1

    await life.run()

    assert life.ends == [Ended("engine", -signal.SIGKILL, 0.001)]


async def test_stop_is_a_sigterm_and_the_last_end(tmp_path: Path) -> None:
    life = Life(tmp_path, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
    running = asyncio.create_task(life.run())
    await life.said("up")

    life.container.stop()
    await running

    assert life.ends == []
    assert life.log.read_text() == "up\nbye\n"
    assert life.container.pid is None


async def test_stop_does_not_wait_for_a_back_off(tmp_path: Path) -> None:
    life = Life(tmp_path, "exit 1")
    life.container = Container(life.container.spec, prefix=(), back_off=Slow())
    running = asyncio.create_task(life.run())
    await life.ended.wait()

    life.container.stop()
    await running

    assert [ended.restart_seconds for ended in life.ends] == [3600.0]


async def test_a_container_lives_in_a_session_of_its_own(tmp_path: Path) -> None:
    life = Life(tmp_path, 'echo "$$ $(cut -d " " -f 6 "/proc/$$/stat")."; exec sleep 60')
    running = asyncio.create_task(life.run())
    await life.said(".")

    pid, session = life.log.read_text().rstrip(".\n").split()
    life.container.stop()
    await running

    assert pid == session


def test_a_log_grown_too_large_starts_anew_under_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wings_proxy.local.pod._LOG_LIMIT_BYTES", 10)
    monkeypatch.setattr("wings_proxy.local.pod.become_subreaper", lambda: None)
    log, absent = tmp_path / "log", tmp_path / "absent"
    pod = Pod([ContainerSpec("a", (), {}, log), ContainerSpec("b", (), {}, absent)])

    with log.open("ab", buffering=0) as writer:
        writer.write(b"0123456789")
        pod.trim_logs()
        assert log.read_bytes() == b"0123456789"
        writer.write(b"!")
        pod.trim_logs()
        writer.write(b"new")

    assert log.read_bytes() == b"new"
    assert not absent.exists()
