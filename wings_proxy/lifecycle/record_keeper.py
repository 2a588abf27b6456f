"""Keep on the shared volume what the sidecar's next process has to know of the engine's run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wings_proxy.handover.sidecar_record import SidecarRecord
from wings_proxy.handover.volume import Volume, VolumeError

_log = logging.getLogger(__name__)

# A volume that is full or gone is tried again in a while: only a restart of ours would miss the record.
_PAUSE_SECONDS: Final = 5.0


async def keep_record(
    volume: Volume,
    record: Callable[[], SidecarRecord | None],
    changed: asyncio.Event,
    *,
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Write the record whenever it is another than the one written last, until cancelled; *changed* says: look."""
    written: SidecarRecord | None = None
    told = False
    while True:
        await changed.wait()
        changed.clear()
        if (now := record()) is None or now == written:
            continue
        try:
            await volume.save_record(now)
        except VolumeError as error:
            if not told:
                _log.warning("what is known of this engine run would be lost with this process: %s", error.detail)
            told = True
            await asyncio.sleep(pause_seconds)
            changed.set()
        else:
            written, told = now, False
