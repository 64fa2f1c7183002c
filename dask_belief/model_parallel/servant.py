"""The life of a piece that is not the lead: it carries out what the lead orders, on its own range of the parameters."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
from dataclasses import dataclass
from typing import Any

from dask_belief.cluster.post_box import Correspondent
from dask_belief.errors import ActorLostError, CallTimeoutError, StaleError
from dask_belief.model_parallel.letters import ANSWER, ORDERS, Letter
from dask_belief.model_parallel.plan import LEAD
from dask_belief.parameter_server.exchange import Exchanged
from dask_belief.parameter_server.executor import Ahead

logger = logging.getLogger(__name__)

Order = tuple[str, tuple[Any, ...]]
"""A word of an executor, with what belongs to it."""


@dataclass(frozen=True)
class Failed:
    """Why a push or a fetch of a piece did not come through."""

    is_stale: bool
    said: str

    def as_error(self, piece: int) -> Exception:
        """Give what the lead raises."""
        kind = StaleError if self.is_stale else ActorLostError
        return kind(f"piece {piece} of a replica: {self.said}")


def serve(inner: Any, number: int, correspondent: Correspondent, ahead: Ahead) -> str:
    """Carry out what the lead orders until it says that there is no more: the life of a piece.

    Parameters
    ----------
    inner
        The executor of the piece's own range.
    number
        Which piece this is.
    correspondent
        This piece's.
    ahead
        What an exchange is told of the rows ahead: nothing.

    Returns
    -------
    str
        Why it ended.
    """
    servant = _Servant(inner, number, correspondent, ahead)
    for which in itertools.count():
        orders = correspondent.receive(Letter(which, ORDERS, 0, LEAD, number), "orders of the lead")
        for word, arguments in orders:
            if word == "end":
                return "the lead has ended"
            servant.carry_out(word, tuple(arguments))
    raise AssertionError("there are not so many orders")


class _Servant:
    """Carries orders out."""

    def __init__(self, inner: Any, number: int, correspondent: Correspondent, ahead: Ahead) -> None:
        self._inner = inner
        self._number = number
        self._correspondent = correspondent
        self._ahead = ahead

    def carry_out(self, word: str, arguments: tuple[Any, ...]) -> None:
        if word == "compute":
            batch, targets = arguments
            self._inner.compute((batch, None), targets)
        elif word == "answer":
            question, asked, of_it = arguments
            self._answer(question, asked, tuple(of_it))
        elif word == "fetch":
            try:
                self._inner.fetch(*arguments)
            except StaleError as error:
                # The evaluation is over: what is computed for it is refused by the shards, and the lead hears of that.
                logger.info("piece %d: %s", self._number, error)
        else:
            getattr(self._inner, word)(*arguments)

    def _answer(self, question: int, asked: str, arguments: tuple[Any, ...]) -> None:
        letter = Letter(question, ANSWER, 0, self._number, LEAD)
        if asked == "exchange":
            sent = self._inner.exchange(*arguments, self._ahead)
        elif asked == "push_sum":
            sent = self._inner.push_sum(*arguments)
        else:
            self._correspondent.send(LEAD, letter, getattr(self._inner, asked)(*arguments))
            return
        self._correspondent.start(self._tell(letter, sent))

    async def _tell(self, letter: Letter, sent: concurrent.futures.Future[Any] | None) -> None:
        """Tell the lead once what was begun has come through, or why not."""
        said: object = (0, 0)
        try:
            done = None if sent is None else await asyncio.wrap_future(sent)
        except StaleError as error:
            said = Failed(True, str(error))
        except Exception as error:
            said = Failed(False, f"{type(error).__name__}: {error}")
        else:
            if isinstance(done, Exchanged):
                said = (done.pushed_bytes, done.fetched_bytes)
            elif done is not None:
                said = done
        try:
            await self._correspondent.deliver(LEAD, letter, said)
        except (ActorLostError, CallTimeoutError) as error:
            # The lead is lost, and with it this replica.
            logger.info("piece %d: %s", self._number, error)
