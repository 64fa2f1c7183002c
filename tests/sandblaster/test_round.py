"""One round of messages: commands in order, answers by name."""

from __future__ import annotations

from typing import Any

import pytest

from dask_belief.parameter_server.messages import Combine, Dot, MaxNorm
from dask_belief.sandblaster.round import Round

COPY = Combine("d", ((1.0, "g"),))


class Shards:
    """Answers each `Dot` and `MaxNorm` by a number of its own."""

    def __init__(self) -> None:
        self.rounds: list[tuple[Any, ...]] = []

    def execute(self, *commands: Any) -> list[list[float]]:
        self.rounds.append(commands)
        return [[float(number)] for number, command in enumerate(commands) if not isinstance(command, Combine)]


def test_commands_go_in_one_message_in_order() -> None:
    """With answers under the names that they were asked by."""
    shards: Any = Shards()
    to_shards = Round()
    to_shards.do(COPY)
    to_shards.ask("slope", Dot((("d", "g"),)))
    to_shards.do(COPY, COPY)
    to_shards.ask("norm", MaxNorm("g"))
    assert to_shards.send(shards) == {"slope": [1.0], "norm": [4.0]}
    assert shards.rounds == [(COPY, Dot((("d", "g"),)), COPY, COPY, MaxNorm("g"))]
    assert to_shards.seconds >= 0


def test_round_without_commands_is_empty() -> None:
    """So that it need not be sent."""
    to_shards = Round()
    assert to_shards.is_empty
    to_shards.do(COPY)
    assert not to_shards.is_empty


def test_answer_that_was_not_asked_for_is_an_error() -> None:
    """Names and answers must be as many."""
    shards: Any = Shards()
    to_shards = Round()
    to_shards.do(MaxNorm("g"))
    with pytest.raises(ValueError, match="zip"):
        to_shards.send(shards)
