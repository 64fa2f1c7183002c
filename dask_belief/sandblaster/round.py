"""One round of messages to the shards: commands in order, and names for what is asked of them."""

from __future__ import annotations

import time

from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.messages import Command


class Round:
    """Collects commands, sends them all in one message a shard, and gives the scalars by name.

    Examples
    --------
    >>> to_shards = Round()                                             # doctest: +SKIP
    >>> to_shards.do(Combine("d", ((-1.0, "g"),)))                      # doctest: +SKIP
    >>> to_shards.ask("slope", Dot((("d", "g"),)))                      # doctest: +SKIP
    >>> to_shards.send(deployment)                                      # doctest: +SKIP
    {'slope': [-0.25]}
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """How long the round took, once it was sent."""
        self._commands: list[Command] = []
        self._names: list[str] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self._commands

    def do(self, *commands: Command) -> None:
        """Add commands that answer nothing."""
        self._commands.extend(commands)

    def ask(self, name: str, command: Command) -> None:
        """Add a command that answers with scalars, found under `name`."""
        self._commands.append(command)
        self._names.append(name)

    def send(self, deployment: Deployment) -> dict[str, list[float]]:
        """Send the commands and wait for the answers, once."""
        began = time.monotonic()
        answers = deployment.execute(*self._commands)
        self.seconds = time.monotonic() - began
        return dict(zip(self._names, answers, strict=True))
