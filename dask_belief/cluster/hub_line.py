"""How a replica talks to its hub, the coordinator or ledger: it asks for leases ahead, and reports when they are done.

A question for work is held open by the hub until there is some, with a limit; a replica that hears nothing for long
ends by itself (`Standing`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

from dask_belief.cluster.actors import ActorAddress, Caller
from dask_belief.cluster.asking import answer_within
from dask_belief.cluster.hub import Over
from dask_belief.cluster.limits import GRACE_SECONDS, limits
from dask_belief.cluster.standing import Standing
from dask_belief.errors import StaleError

Asked = concurrent.futures.Future[Any]
"""A question for work that is under way; it ends with a lease, `Over`, or None."""


class HubLine:
    """One replica's line to its hub.

    Parameters
    ----------
    hub
        The hub's address.
    replica, standing, caller
        The replica's name, its standing as a Dask task, and the way to actors.
    on_lease
        Called with each lease as soon as it arrives, on the event loop: to read its data ahead.
    """

    def __init__(
        self,
        hub: ActorAddress,
        replica: str,
        standing: Standing,
        caller: Caller,
        on_lease: Callable[[Any], None],
    ) -> None:
        self._hub = hub
        self._replica = replica
        self._standing = standing
        self._caller = caller
        self._on_lease = on_lease

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method of the hub in this replica's name."""
        return await self._caller.call(self._hub, method, self._hub.generation, self._replica, *arguments)

    def start(self, method: str, *arguments: object) -> Asked:
        """Begin such a call; the replica's thread goes on."""
        return self._caller.start(self.call(method, *arguments))

    def hello(self, kind: str) -> None:
        """Count this replica in; `kind` is what decides the last bits of its results."""
        self._caller.run(self.call("hello", kind))

    def ask(self) -> Asked:
        """Begin to ask for a lease."""
        self._standing.listen()
        return self._caller.start(self._question())

    async def _question(self) -> Any:
        answer = await self.call("next_lease", limits().poll_seconds)
        self._standing.heard()
        if answer is not None and not isinstance(answer, Over):
            # Before the replica can see the lease: what it has taken already must not be read once more.
            self._on_lease(answer)
        return answer

    def answer(self, asked: Asked) -> Any:
        """Wait for the answer: a lease, `Over`, or None when there is no work at this moment.

        Raises
        ------
        CallTimeoutError, ActorLostError
            When the hub does not answer.
        """
        return self.wait_for(asked)

    def wait_for(self, asked: Asked) -> Any:
        """Wait for the answer to a question that the hub holds open for `Limits.poll_seconds` at most.

        Raises
        ------
        CallTimeoutError, ActorLostError
            When the hub does not answer.
        """
        limit_seconds = limits().poll_seconds + limits().call_seconds + GRACE_SECONDS
        what = f"the answer of {self._hub.name} on {self._hub.worker} to {self._replica}"
        return answer_within(limit_seconds, asked, what)

    def wait_for_report(self, report: Asked, push_seconds: float | None = None) -> None:
        """Wait until a lease is reported, and before that the push that belongs to it is through.

        Parameters
        ----------
        report
            Under way.
        push_seconds
            How long the push may take; `Limits.call_seconds` if none is given.

        Raises
        ------
        CallTimeoutError, ActorLostError
            When shards or hub do not answer.
        """
        limit_seconds = limits().call_seconds + (push_seconds or limits().call_seconds)
        what = f"the end of a push of {self._replica} to the shards, and of its report to {self._hub.worker},"
        answer_within(limit_seconds, report, what)

    async def directory(self, known: int) -> Any:
        """Ask for a directory of the shards newer than number `known`; None when there is none at this moment."""
        return await self.call("directory", known, limits().poll_seconds)

    def report_after(self, sent: concurrent.futures.Future[Any] | None, report: object) -> Asked:
        """Begin to report a lease, once the push that belongs to it is through.

        A push that is refused as stale is no longer wanted, nor is its report: others did the work.
        """
        return self._caller.start(self._report(sent, report))

    async def _report(self, sent: concurrent.futures.Future[Any] | None, report: object) -> None:
        if sent is not None:
            try:
                await asyncio.wrap_future(sent)
            except StaleError:
                return
        await self.call("report", report)
