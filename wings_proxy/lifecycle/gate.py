"""The door to the engine: who may pass now, and the `hold` that protects those who passed.

Before the first request of an engine run is forwarded, `hold` names the run on the shared volume, and then the
engine's status is read again. The launch script does it the other way round: it writes that a stop was asked for, then
looks for `hold`. So either it sees the hold and waits, or we see the stop and do not forward.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wings_proxy.handover.engine_status import Phase
from wings_proxy.handover.volume import Volume, VolumeError
from wings_proxy.lifecycle.state import Snapshot, State
from wings_proxy.proxy.api_errors import ApiError, ErrorCode

_log = logging.getLogger(__name__)

VOLUME_SECONDS: Final = 5.0
"""How long a request waits for a volume that hangs."""
_REMOVAL_SECONDS: Final = 2.0


class VolumeGate:
    """Admits requests by the supervisor's snapshot; implements `forward.Gate`."""

    def __init__(
        self,
        volume: Volume,
        *,
        snapshot: Callable[[], Snapshot],
        clock: Callable[[], float],
        hold_taken: Callable[[int], None],
    ) -> None:
        self._volume = volume
        self._snapshot = snapshot
        self._clock = clock
        self._hold_taken = hold_taken
        self._held_epoch: int | None = None
        self._on_volume = False
        self._lock = asyncio.Lock()

    @property
    def open(self) -> bool:
        """Whether a request may be forwarded without further ado."""
        snapshot = self._snapshot()
        return snapshot.forwards and self._held_epoch == snapshot.epoch

    async def admit(self) -> ApiError | None:
        """Let a request pass (None), taking the hold if it is the first of its run, or say why not."""
        async with self._lock:
            snapshot = self._snapshot()
            if not snapshot.forwards:
                return self._refusal(snapshot)
            if self.open:
                return None
            run = snapshot.holdable_run
            if run is None:
                # Started by hand: nobody will look for a hold.
                self._admit(snapshot)
                return None
            try:
                async with asyncio.timeout(VOLUME_SECONDS):
                    await self._volume.take_hold(run)
                    self._on_volume = True
                    status = await self._volume.read_status()
            except asyncio.CancelledError:
                # The client left; the thread that writes the hold goes on, and somebody must take it away one day.
                self._on_volume = True
                self._hold_taken(snapshot.epoch)
                raise
            except (VolumeError, TimeoutError) as error:
                # A volume that is full or hangs must not stop the service: this run is forwarded to without protection.
                detail = error.detail if isinstance(error, VolumeError) else "the volume hangs"
                _log.warning("requests of this engine run are not protected from its stop: %s", detail)
                # The thread that hangs may write the hold yet, and somebody must take it away one day.
                self._on_volume = self._on_volume or isinstance(error, TimeoutError)
                self._admit(snapshot)
                return None
            later = self._snapshot()
            asked = status is not None and (status.run != run or status.phase is not Phase.RUNNING)
            if asked or later.epoch != snapshot.epoch or not later.forwards:
                await self._unlink()
                return self._refusal(later)
            self._admit(snapshot)
            return None

    def _admit(self, snapshot: Snapshot) -> None:
        # Told also where no hold could be taken: our own end must still give endpoints their time to lag.
        self._held_epoch = snapshot.epoch
        self._hold_taken(snapshot.epoch)

    async def release(self) -> None:
        """Let the engine container go: no request is in flight, or the time for them is over."""
        await self._remove(found=False)

    async def discard(self) -> None:
        """Remove what an earlier process of this sidecar left: the streams it protected died with it."""
        await self._remove(found=True)

    async def _remove(self, *, found: bool) -> None:
        try:
            async with asyncio.timeout(_REMOVAL_SECONDS), self._lock:
                if found or self._on_volume:
                    await self._unlink()
        except TimeoutError:
            _log.error("the shared volume hangs: the hold could not be removed")

    async def _unlink(self) -> None:
        self._on_volume = False
        self._held_epoch = None
        try:
            await self._volume.release_hold()
        except VolumeError as error:
            # The script's own patience ends the wait.
            _log.error("the hold could not be removed: %s", error.detail, extra={"fields": {"reason": error.reason}})

    def _refusal(self, snapshot: Snapshot) -> ApiError:
        # The reason alone: a detail may name paths, flags and sizes, which are for who may read /health.
        retry_after = snapshot.retry_after(self._clock())
        if snapshot.state is State.FAILED:
            return ApiError(503, ErrorCode.ENGINE_FAILED, f"The engine failed: {snapshot.reason}.", retry_after)
        if snapshot.state in (State.STOPPING, State.DRAINING) or snapshot.forwards:
            return ApiError(
                503, ErrorCode.DRAINING, "This instance is shutting down, try another.", retry_after, close=True
            )
        message = f"The engine is not ready: {snapshot.reason}."
        return ApiError(503, ErrorCode.ENGINE_NOT_READY, message, retry_after)
