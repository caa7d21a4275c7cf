"""Replay in a server, only while its LLMs have nothing else to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from echolm.errors import EchoError
from echolm.examples.replay import Replayed, Replayer
from echolm.learning.event_log import EventLog
from echolm.settings import ReplaySettings

logger = logging.getLogger("echolm")

_LOOK_EVERY_S = 0.1
_LEASE, _LEASE_S = "replay", 300.0
_ROUND = 100


@dataclass
class OffPeakReplay:
    """Replays while there is no load, and stops at once when there is. For one event loop.

    Only one replica at a time does this.

    Attributes:
        in_flight: gives the number of requests that all LLMs are serving now, without replay.
        owner: name of this replica, different from all others'.
        on_replayed: is called after every example.
    """

    replayer: Replayer
    log: EventLog
    settings: ReplaySettings
    in_flight: Callable[[], int]
    owner: str
    on_replayed: Callable[[Replayed], None]

    async def run(self) -> None:
        """Replay again and again, until cancelled."""
        while True:
            await self._quiet()
            task = asyncio.create_task(self._round())
            try:
                while not task.done() and not self._busy():
                    await asyncio.wait([task], timeout=_LOOK_EVERY_S)
            finally:
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
            except EchoError as error:
                logger.warning("replay pauses: %s", error)
            except Exception as error:  # the next round may work
                logger.error("replay pauses", exc_info=error)

    async def _quiet(self) -> None:
        """Wait until there has been no load for the whole of a pause."""
        quiet_s = 0.0
        while quiet_s < self.settings.pause_s:
            await asyncio.sleep(_LOOK_EVERY_S)
            quiet_s = 0.0 if self._busy() else quiet_s + _LOOK_EVERY_S

    def _busy(self) -> bool:
        return self.in_flight() > self.settings.max_in_flight_llm_requests

    async def _round(self) -> None:
        lease = partial(self.log.lease, _LEASE, self.owner, _LEASE_S)
        if not lease():
            return
        async for replayed in self.replayer.run(_ROUND):
            self.on_replayed(replayed)
            if not lease():
                return
