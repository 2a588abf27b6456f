"""What the next process of the sidecar has to know is written when it changes, and again where that failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from wings_proxy.handover.sidecar_record import SidecarRecord
from wings_proxy.handover.volume import Volume, VolumeError, VolumeReason
from wings_proxy.lifecycle.record_keeper import keep_record

RUN = "00000000-0000-4000-8000-000000000001"
LOADING = SidecarRecord(RUN, "0" * 12, ready=False, began=1.0, loaded_generation=None, load_seconds=None)
READY = replace(LOADING, ready=True)


class CountedVolume(Volume):
    """Counts what is written; the first so many writes fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.failures = 0
        self.tried: asyncio.Queue[SidecarRecord] = asyncio.Queue()

    async def save_record(self, record: SidecarRecord) -> None:
        if self.failures:
            self.failures -= 1
            self.tried.put_nowait(record)
            raise VolumeError(VolumeReason.FULL, "no room")
        await super().save_record(record)
        self.tried.put_nowait(record)


class Keeper:
    def __init__(self, path: Path) -> None:
        self.volume = CountedVolume(path)
        self.record: SidecarRecord | None = None
        self.changed = asyncio.Event()

    async def becomes(self, record: SidecarRecord | None) -> None:
        self.record = record
        self.changed.set()
        while self.changed.is_set():  # noqa: ASYNC110 - until the keeper has looked
            await asyncio.sleep(0)

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            keeping = keep_record(self.volume, lambda: self.record, self.changed, pause_seconds=0.001)
            task = group.create_task(keeping)
            yield
            task.cancel()


async def test_each_new_record_is_written_once(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    async with keeper.keeping():
        await keeper.becomes(None)
        await keeper.becomes(LOADING)
        assert await keeper.volume.tried.get() == LOADING
        # What is no news costs no write.
        for record in (LOADING, None, LOADING, READY):
            await keeper.becomes(record)
        assert await keeper.volume.tried.get() == READY
        assert keeper.volume.tried.empty()
        assert await Volume(tmp_path).read_record() == READY


async def test_a_volume_that_is_full_is_tried_again_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(tmp_path)
    keeper.volume.failures = 3
    async with keeper.keeping():
        await keeper.becomes(READY)
        assert [await keeper.volume.tried.get() for _ in range(4)] == [READY] * 4
    assert [record.getMessage() for record in caplog.records] == [
        "what is known of this engine run would be lost with this process: no room"
    ]
