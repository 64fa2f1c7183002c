"""Questions that are held open until there is an answer: what a coordinator's and a ledger's waits are made of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Over:
    """The answer to a replica that asks for work when the run is over."""


class Bell:
    """Wakes everyone who waits, on one event loop; who begins to wait later hears the next ring only."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everyone who waits now."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, limit_seconds: float) -> bool:
        """Wait for the next ring; False when the limit passed first."""
        try:
            await asyncio.wait_for(self._rung.wait(), limit_seconds)
        except TimeoutError:
            return False
        return True
