"""Keeping something that is done now and then within a part of the time; pure."""

from __future__ import annotations


class Share:
    """Says when something may be done again.

    Parameters
    ----------
    share
        The part of the time that it may take, between 0 and 1.
    least_seconds
        From the end of one to the next, however little they cost.
    """

    def __init__(self, share: float, least_seconds: float = 0.0) -> None:
        self._share = share
        self._least_seconds = least_seconds
        self._ready_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether enough time has passed since the last one."""
        return now >= self._ready_at

    def took(self, began: float, ended: float) -> None:
        """Note what the last one cost."""
        self._ready_at = ended + max((ended - began) * (1 - self._share) / self._share, self._least_seconds)

    def reset(self) -> None:
        """Let the next one be due at once."""
        self._ready_at = 0.0
