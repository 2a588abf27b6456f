"""The door to the engine: who may pass now, and the `hold` that protects those who passed.

Before the first request of an engine run is forwarded, `hold` names the run on the shared volume, and then the
engine's status is read again. The launch script does it the other way round: it writes that a stop was asked for, then
looks for `hold`. So either it sees the hold and waits, or we see the stop and do not forward.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from wings_proxy.api_errors import ApiError, ErrorCode
from wings_proxy.engine_status import Phase
from wings_proxy.lifecycle import Snapshot, State
from wings_proxy.volume import Volume, VolumeError

_log = logging.getLogger(__name__)


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
                await self._volume.take_hold(run)
                self._on_volume = True
                status = await self._volume.read_status()
            except asyncio.CancelledError:
                # The client left; the thread that writes the hold goes on, and somebody must take it away one day.
                self._on_volume = True
                self._hold_taken(snapshot.epoch)
                raise
            except VolumeError as error:
                # A volume that is full must not stop the service: this run is forwarded to without protection.
                _log.warning("requests of this engine run are not protected from its stop: %s", error.detail)
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
        async with self._lock:
            if self._on_volume:
                await self._unlink()

    async def discard(self) -> None:
        """Remove what an earlier process of this sidecar left: the streams it protected died with it."""
        async with self._lock:
            await self._unlink()

    async def _unlink(self) -> None:
        self._on_volume = False
        self._held_epoch = None
        try:
            await self._volume.release_hold()
        except VolumeError as error:
            # The script's own patience ends the wait.
            _log.error("the hold could not be removed: %s", error.detail, extra={"fields": {"reason": error.reason}})

    def _refusal(self, snapshot: Snapshot) -> ApiError:
        retry_after = snapshot.retry_after(self._clock())
        if snapshot.state is State.FAILED:
            return ApiError(503, ErrorCode.ENGINE_FAILED, f"The engine failed: {snapshot.detail}.", retry_after)
        if snapshot.state in (State.STOPPING, State.DRAINING) or snapshot.forwards:
            return ApiError(
                503, ErrorCode.DRAINING, "This instance is shutting down, try another.", retry_after, close=True
            )
        message = f"The engine is not ready ({snapshot.state}): {snapshot.detail}."
        return ApiError(503, ErrorCode.ENGINE_NOT_READY, message, retry_after)
