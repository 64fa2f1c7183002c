"""The names of the messages between pieces: which it is, so that a stale one is never taken for another."""

from __future__ import annotations

from typing import NamedTuple

UP = "up"
"""Values of nodes."""

DOWN = "down"
"""Derivatives by nodes."""

LENT = "lent"
"""Parameters that are shared, for who borrows them."""

FOUND = "found"
"""What a borrower found of their gradient."""

LOSS = "loss"
"""The loss, for the lead."""

ORDERS = "orders"
"""What the lead tells a piece to do."""

ANSWER = "answer"
"""What a piece answers to that."""


class Letter(NamedTuple):
    """Which message it is; small and plain, as it travels with each."""

    step: int
    """The mini-batch, orders or question to which it belongs: each has a number of its own."""

    way: str
    """What it holds: one of the names above."""

    number: int
    """Of the array, or of what is shared."""

    source: int
    """The piece that sends it."""

    destination: int
    """The piece that it is for."""

    micro_batch: int = 0
