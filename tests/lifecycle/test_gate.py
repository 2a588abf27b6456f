"""The door to the engine, and the hold that protects who passed it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wings_proxy.handover.engine_status import EngineStatus
from wings_proxy.handover.volume import Volume
from wings_proxy.lifecycle.gate import VolumeGate
from wings_proxy.lifecycle.state import Progress, Snapshot, State
from wings_proxy.proxy.api_errors import ErrorCode

RUN = "00000000-0000-4000-8000-000000000001"
READY = Snapshot(State.READY, 0.0, "", "", epoch=1, run=RUN)


def status(phase: str, run: str = RUN) -> bytes:
    asked = "false" if phase == "running" else "true"
    return (
        f'{{"run": "{run}", "generation": "0123456789ab", "phase": "{phase}", "asked": {asked}, '
        '"code": null, "started": 1, "changed": 1}\n'
    ).encode()


class Door:
    """A gate over a real directory, with a snapshot the test may change."""

    def __init__(self, path: Path, snapshot: Snapshot = READY) -> None:
        self.path = path
        self.snapshot = snapshot
        self.taken: list[int] = []
        self.gate = VolumeGate(
            Volume(path), snapshot=lambda: self.snapshot, clock=lambda: 10.0, hold_taken=self.taken.append
        )
        (path / "engine.status").write_bytes(status("running"))

    @property
    def hold(self) -> str | None:
        hold = self.path / "hold"
        return hold.read_text().strip() if hold.exists() else None


async def test_the_first_request_of_a_run_takes_the_hold_and_opens_the_door(tmp_path: Path) -> None:
    door = Door(tmp_path)
    open_before = door.gate.open
    assert await door.gate.admit() is None
    assert (open_before, door.gate.open) == (False, True)
    assert door.hold == RUN
    assert door.taken == [1]


async def test_many_first_requests_at_once_take_it_once(tmp_path: Path) -> None:
    door = Door(tmp_path)
    assert await asyncio.gather(*(door.gate.admit() for _ in range(20))) == [None] * 20
    assert door.taken == [1]


async def test_the_next_run_needs_a_hold_of_its_own(tmp_path: Path) -> None:
    door = Door(tmp_path)
    await door.gate.admit()
    other = RUN.replace("1", "2")
    door.snapshot = replace(READY, epoch=2, run=other)
    (tmp_path / "engine.status").write_bytes(status("running", other))
    assert not door.gate.open
    assert await door.gate.admit() is None
    assert door.hold == other


async def test_an_engine_without_a_run_is_forwarded_to_without_a_hold(tmp_path: Path) -> None:
    door = Door(tmp_path, replace(READY, run=None))
    assert await door.gate.admit() is None
    assert door.gate.open
    assert door.hold is None
    # Our own end must know that clients are about.
    assert door.taken == [1]


@pytest.mark.parametrize("seen", [status("stop_requested"), status("running", RUN.replace("1", "3"))])
async def test_a_stop_that_was_asked_for_meanwhile_wins(tmp_path: Path, seen: bytes) -> None:
    door = Door(tmp_path)
    (tmp_path / "engine.status").write_bytes(seen)
    refusal = await door.gate.admit()
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.close) == (503, ErrorCode.DRAINING, True)
    assert door.hold is None
    assert door.taken == []


class SlowVolume(Volume):
    """Lets the test change the world while the hold is being written."""

    def __init__(self, path: Path, meanwhile: Callable[[], None]) -> None:
        super().__init__(path)
        self._meanwhile = meanwhile

    async def take_hold(self, run: str) -> None:
        await super().take_hold(run)
        self._meanwhile()


class StuckVolume(Volume):
    """Does one thing and then does not come back: a thread goes on after the request that waits for it is cancelled."""

    def __init__(self, path: Path, stuck_in: str) -> None:
        super().__init__(path)
        self._stuck_in = stuck_in
        self.stuck = asyncio.Event()

    async def take_hold(self, run: str) -> None:
        await super().take_hold(run)
        if self._stuck_in == "take_hold":
            await self._stick()

    async def read_status(self) -> EngineStatus | None:
        if self._stuck_in == "read_status":
            await self._stick()
        return await super().read_status()

    async def _stick(self) -> None:
        self.stuck.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("stuck_in", ["take_hold", "read_status"])
async def test_a_client_that_leaves_meanwhile_leaves_no_hold_nobody_knows_of(tmp_path: Path, stuck_in: str) -> None:
    door = Door(tmp_path)
    volume = StuckVolume(tmp_path, stuck_in)
    gate = VolumeGate(volume, snapshot=lambda: door.snapshot, clock=lambda: 10.0, hold_taken=door.taken.append)
    request = asyncio.create_task(gate.admit(), name="request")
    await volume.stuck.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    # The stop was not looked for yet: the next request does not pass without that.
    assert not gate.open
    # Else the lifecycle would not ask for its removal, and the script would wait for requests there are none of.
    assert door.taken == [1]
    assert door.hold == RUN
    await gate.release()
    assert door.hold is None


async def test_our_own_drain_during_the_writing_wins(tmp_path: Path) -> None:
    door = Door(tmp_path)

    def drain() -> None:
        door.snapshot = replace(READY, state=State.DRAINING, accepting=False)

    gate = VolumeGate(
        SlowVolume(tmp_path, drain), snapshot=lambda: door.snapshot, clock=lambda: 10.0, hold_taken=door.taken.append
    )
    refusal = await gate.admit()
    assert refusal is not None
    assert refusal.code is ErrorCode.DRAINING
    assert door.hold is None


async def test_a_volume_that_cannot_be_written_does_not_stop_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(tmp_path)
    (tmp_path / "hold").mkdir()
    assert await door.gate.admit() is None
    assert door.gate.open
    assert "not protected" in caplog.text
    assert door.taken == [1]
    await door.gate.release()  # nothing of ours to remove
    await door.gate.discard()
    assert "could not be removed" in caplog.text


async def test_release_lets_the_script_go_and_a_second_time_is_fine(tmp_path: Path) -> None:
    door = Door(tmp_path)
    await door.gate.admit()
    await door.gate.release()
    assert door.hold is None
    assert not door.gate.open
    await door.gate.release()


async def test_release_leaves_a_hold_alone_that_is_not_ours_and_discard_does_not(tmp_path: Path) -> None:
    door = Door(tmp_path)
    (tmp_path / "hold").write_text(RUN)
    await door.gate.release()
    assert door.hold == RUN
    await door.gate.discard()
    assert door.hold is None


@pytest.mark.parametrize(
    ("snapshot", "code", "retry_after"),
    [
        (replace(READY, state=State.WAITING), ErrorCode.ENGINE_NOT_READY, 5),
        (replace(READY, state=State.STARTING), ErrorCode.ENGINE_NOT_READY, 5),
        (replace(READY, state=State.LOADING, progress=Progress("weights", 0.5)), ErrorCode.ENGINE_NOT_READY, 10),
        (replace(READY, state=State.FAILED), ErrorCode.ENGINE_FAILED, 15),
        (replace(READY, state=State.STOPPING, accepting=False), ErrorCode.DRAINING, 1),
        (replace(READY, state=State.DRAINING, accepting=False), ErrorCode.DRAINING, 1),
    ],
)
async def test_who_may_not_pass_is_told_why_and_when_to_come_again(
    tmp_path: Path, snapshot: Snapshot, code: ErrorCode, retry_after: int
) -> None:
    refusal = await Door(tmp_path, snapshot).gate.admit()
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.retry_after) == (503, code, retry_after)
    assert not (tmp_path / "hold").exists()


async def test_an_unhealthy_engine_is_still_forwarded_to(tmp_path: Path) -> None:
    door = Door(tmp_path, replace(READY, state=State.UNHEALTHY))
    assert await door.gate.admit() is None
