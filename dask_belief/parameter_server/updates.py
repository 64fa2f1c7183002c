"""What a shard does with the pushes of a Downpour run (paper, section 4.1).

Each mini-batch counts once on each piece of each shard, whoever sends it and however often: a piece keeps, per lease,
the last mini-batch that was applied to it, its mark. Pieces and shards know nothing of one another: they may have had
different numbers of updates, in different orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import get_backend
from dask_belief.errors import StaleError
from dask_belief.monitoring.staleness import N_BINS, StalenessCounts, bin_of
from dask_belief.optim.rules import Rule
from dask_belief.parameter_server.consistency import ElasticAveraging, ScaleByStaleness, Staleness, Synchronous
from dask_belief.parameter_server.exchange import Sent
from dask_belief.parameter_server.messages import (
    NOTHING_FINISHED,
    Finished,
    LeaseKey,
    Logged,
    PushKey,
    Round,
    StepKey,
)
from dask_belief.parameter_server.selection import Selection
from dask_belief.parameter_server.vectors import Vectors

Vector = NDArray[np.floating]

VALUES = "values"
"""The name of the vector that the rule updates in place."""

STATE = "state:"
"""What stands before the names of the rule's own vectors."""


@dataclass(frozen=True)
class UpdateSpec:
    """How pushes are applied.

    Attributes
    ----------
    rule
        The update rule.
    n_replicas
        Of the run; None for as many as there are threads.
    weight_decay
        Before each update ``values *= 1 - rate * weight_decay``, where parameters are penalised.
    staleness
        What is done about old gradients.
    is_recorded
        Whether the order of exchanges is kept until it is asked for.
    wire_dtype
        Of what is pushed and given: None for that of the values, or ``"bfloat16"``, as uint16.
    """

    rule: Rule
    n_replicas: int | None = None
    weight_decay: float = 0.0
    staleness: Staleness | None = None
    is_recorded: bool = False
    wire_dtype: str | None = None


@dataclass(frozen=True)
class SavedPiece:
    """All that a shard keeps for one piece of a Downpour run.

    Attributes
    ----------
    values
        The parameters of the piece.
    state
        The rule's vectors over it, by name.
    marks
        Per lease the last mini-batch applied to it.
    n_updates
        How many updates it has had.
    n_rounds
        Rounds of synchronous training that it has seen closed.
    n_lost
        Mini-batches that were lost when it was put back.
    staged
        Pushes of the present round, for a piece that is handed over; what is saved for later holds none.
    caught_up
        For a piece that is handed over after it was put back: the leases pushed to since; None for any other.
    """

    values: Vector
    state: dict[str, Vector]
    marks: dict[LeaseKey, int]
    n_updates: int
    n_rounds: int = 0
    n_lost: int = 0
    staged: dict[PushKey, Vector] = field(default_factory=dict)
    caught_up: frozenset[LeaseKey] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of its vectors."""
        return sum(vector.nbytes for vector in (self.values, *self.state.values()))


@dataclass(frozen=True)
class Push:
    """A push as it arrives at one piece.

    Attributes
    ----------
    key
        The work that it stands for.
    base
        How many updates the piece had had at the fetch from which the gradient was computed; in synchronous training
        the number of the round.
    gradient
        The accrued mean gradients, ``(length,)``, or compact where `runs` are given; with `ElasticAveraging` the
        replica's parameters. As bfloat16 they are uint16.
    runs
        The ranges of the piece that `gradient` covers, int64 ``(n_runs, 2)``; None for all of it.
    """

    key: PushKey
    base: int
    gradient: Sent
    runs: NDArray[np.int64] | None = None


@dataclass
class _Piece:
    """What is kept for one piece beside its vectors."""

    n_updates: int = 0
    marks: dict[LeaseKey, int] = field(default_factory=dict)
    n_rounds: int = 0
    """Rounds of synchronous training that were closed."""
    staged: dict[PushKey, Vector] = field(default_factory=dict)
    """Pushes of the present round."""
    caught_up: set[LeaseKey] | None = None
    """Leases pushed to since the piece was put back to an older state; None where it never was."""
    n_lost: int = 0
    """Mini-batches that were lost when it was put back."""
    log: list[Logged] = field(default_factory=list)


class Updates:
    """The pieces of one shard of a Downpour run.

    Parameters
    ----------
    vectors
        The shard's vectors, of which this uses `VALUES` and those of the rule.
    spec
        How pushes are applied.

    Attributes
    ----------
    n_dropped
        Pushes that changed nothing: repeated ones, and in synchronous training late ones.
    state_names
        The names of the rule's vectors.
    """

    def __init__(self, vectors: Vectors, spec: UpdateSpec) -> None:
        self._vectors = vectors
        self._spec = spec
        self._pieces: dict[int, _Piece] = {}
        self._finished: Finished = NOTHING_FINISHED
        self.state_names: tuple[str, ...] = ()
        self.n_dropped = 0
        self._staleness = [0] * N_BINS
        self._is_behind = False
        # The marks of pieces that nobody has exchanged with yet, and how many mini-batches they have lost.
        self._marks_at_first: dict[LeaseKey, int] = {}
        self._lost_at_first = 0
        # What came as bfloat16 is widened to here; it grows to the largest piece.
        self._widened: Vector = np.empty(0, np.float32)

    def begin(self, is_behind: bool = False) -> None:
        """Make the rule's state for the values that were written.

        Parameters
        ----------
        is_behind
            Whether other shards have had updates already: then some leases leave a gap.
        """
        self._is_behind = is_behind
        self._adopt(self._new_state())

    def _new_state(self) -> dict[str, Vector]:
        # Elastic averaging steps by the rule on the replicas only.
        is_elastic = isinstance(self._spec.staleness, ElasticAveraging)
        return {} if is_elastic else self._spec.rule.init(self._vectors[VALUES])

    def _adopt(self, state: dict[str, Vector]) -> None:
        self.state_names = tuple(state)
        for name, values in state.items():
            self._vectors.make(STATE + name)[:] = values

    def exchange(
        self,
        replica: str,
        at: StepKey,
        place: slice,
        push: Push | None,
        fetch: bool | NDArray[np.int64],
        closed: Round | None = None,
    ) -> tuple[int, Sent | None]:
        """Apply a push, give the values after it, or both.

        Parameters
        ----------
        replica, at
            Who asks, and where in its work.
        place
            The piece, as a slice of the shard's range.
        push
            What to apply; one at or below the mark is dropped.
        fetch
            Whether to give a copy of the piece's values, or of which ranges, int64 ``(n_runs, 2)``.
        closed
            The round whose pushes are to be applied first, unless they are already.

        Returns
        -------
        n_updates, values
            How many updates the piece has had, and the values as they travel, or None. A push of `ElasticAveraging`
            gets what was added to the values instead.

        Raises
        ------
        StaleError
            When the push leaves a gap behind the mark.
        """
        piece = self._pieces.get(place.start)
        if piece is None:
            piece = self._pieces[place.start] = self._new_piece()
        if closed is not None:
            self._catch_up(piece, closed.number)
            if closed.number == piece.n_rounds:
                self._close(piece, place, closed)
        is_taken = False
        answer: Sent | None = None
        if push is not None:
            if self._is_done(piece, push.key):
                self.n_dropped += 1
                if isinstance(self._spec.staleness, ElasticAveraging):
                    answer = np.zeros_like(push.gradient)
            else:
                is_taken, answer = self._take(piece, place, self._received(push))
        if fetch is not False:
            answer = self._copy(place, fetch)
        if self._spec.is_recorded:
            first, last = (-1, -1) if push is None else push.key[1:]
            piece.log.append(Logged(replica, at, first, last, is_taken, fetch is not False))
        return piece.n_updates, answer

    def _new_piece(self) -> _Piece:
        caught_up: set[LeaseKey] | None = set() if self._is_behind else None
        return _Piece(marks=dict(self._marks_at_first), caught_up=caught_up, n_lost=self._lost_at_first)

    def _copy(self, place: slice, fetch: bool | NDArray[np.int64]) -> Sent:
        values = self._vectors[VALUES][place]
        chosen = None if isinstance(fetch, bool) else Selection(fetch).take(values)
        if self._spec.wire_dtype is not None:
            return _rounded(values if chosen is None else chosen)
        return values.copy() if chosen is None else chosen

    def _received(self, push: Push) -> Push:
        """Give a push in the dtype of the values, valid until the next one comes."""
        if self._spec.wire_dtype is None:
            return push
        return replace(push, gradient=self._widen(push.gradient))

    def _widen(self, bits: Sent) -> Vector:
        if len(self._widened) < len(bits):
            self._widened = np.empty(len(bits), np.float32)
        widened = self._widened[: len(bits)]
        get_backend("numpy").from_bfloat16_(bits, widened)
        return widened

    def _is_done(self, piece: _Piece, key: PushKey) -> bool:
        return key.lease in self._finished or key.last <= piece.marks.get(key.lease, -1)

    def _take(self, piece: _Piece, place: slice, push: Push) -> tuple[bool, Sent | None]:
        """Do with a push what the run asks for; tells whether it was taken, and gives the answer to it."""
        staleness = self._spec.staleness
        if isinstance(staleness, Synchronous):
            self._catch_up(piece, push.base)
            is_in_time = push.base == piece.n_rounds
            if is_in_time:
                # The sender uses its vector again.
                piece.staged[push.key] = push.gradient.copy()
            return is_in_time, None
        self._mark(piece, push.key)
        age = max(0, piece.n_updates - push.base)
        self._staleness[bin_of(age)] += 1
        if isinstance(staleness, ElasticAveraging):
            return True, self._pull(piece, place, push.gradient, staleness)
        factor = 1.0 / max(1, age) if isinstance(staleness, ScaleByStaleness) else 1.0
        self._step(piece, place, push.gradient, push.runs, factor)
        return True, None

    def _mark(self, piece: _Piece, key: PushKey) -> None:
        mark = piece.marks.get(key.lease, -1)
        if key.first != mark + 1:
            # What was applied before the piece was put back is lost; after that no lease may leave a gap.
            is_lost = key.first > mark and piece.caught_up is not None and key.lease not in piece.caught_up
            if not is_lost:
                raise StaleError(
                    f"a push of mini-batches {key.first} to {key.last} of lease {key.lease.lease} came when {mark} was "
                    "the last applied; there is a gap."
                )
            piece.n_lost += key.first - mark - 1
        piece.marks[key.lease] = key.last
        if piece.caught_up is not None:
            piece.caught_up.add(key.lease)

    @staticmethod
    def _catch_up(piece: _Piece, n_rounds: int) -> None:
        """Pass over rounds that were closed without this piece, after it or the ledger was put back."""
        if n_rounds > piece.n_rounds:
            piece.n_rounds = n_rounds
            piece.staged.clear()
            piece.caught_up = set() if piece.caught_up is None else piece.caught_up

    def _step(
        self, piece: _Piece, place: slice, gradient: Vector, runs: NDArray[np.int64] | None, factor: float
    ) -> None:
        """One update by the rule, in place; of the ranges that a sparse push covers only."""
        rule, n_updates = self._spec.rule, piece.n_updates
        rate = factor * rule.rate(n_updates)
        if runs is None:
            values = self._vectors[VALUES][place]
            state = {name: self._vectors[STATE + name][place] for name in self.state_names}
            self._vectors.shrink(VALUES, place, rate * self._spec.weight_decay)
            rule.apply(values, gradient, state, n_updates, rate_factor=factor)
        else:
            chosen = Selection(runs)
            self._vectors.shrink(VALUES, place, rate * self._spec.weight_decay, chosen)
            names = (VALUES, *(STATE + name for name in self.state_names))
            parts = [chosen.take(self._vectors[name][place]) for name in names]
            state = dict(zip(self.state_names, parts[1:], strict=True))
            rule.apply(parts[0], gradient, state, n_updates, rate_factor=factor)
            for name, part in zip(names, parts, strict=True):
                chosen.put(part, self._vectors[name][place])
        piece.n_updates += 1

    def _pull(self, piece: _Piece, place: slice, own: Vector, elastic: ElasticAveraging) -> Sent:
        """Move the values towards a replica's, and tell by how much."""
        values = self._vectors[VALUES][place]
        pull = own - values
        pull *= np.asarray(elastic.elasticity / (self._spec.n_replicas or 1), values.dtype)
        answer: Sent = pull
        if self._spec.wire_dtype is not None:
            # Both sides move by the very same: what one gives the other gets.
            answer = _rounded(pull)
            get_backend("numpy").from_bfloat16_(answer, pull)
        values += pull
        piece.n_updates += 1
        return answer

    def _close(self, piece: _Piece, place: slice, closed: Round) -> None:
        """End a round: one step by the mean of its members' gradients, in the order of their leases."""
        if self._spec.is_recorded:
            piece.log.extend(Logged.closing(closed))
        for key in closed.late:
            if not self._is_done(piece, key):
                self._mark(piece, key)
                self.n_dropped += 1
        due = [key for key in sorted(closed.members) if not self._is_done(piece, key)]
        members = [key for key in due if key in piece.staged]
        for key in due:
            if key not in piece.staged:
                # It was staged before the piece was put back.
                self._mark(piece, key)
                piece.n_lost += key.last - key.first + 1
        if members:
            total = piece.staged[members[0]]
            for key in members[1:]:
                total += piece.staged[key]
            total *= np.asarray(1.0 / len(members), total.dtype)
            for key in members:
                self._mark(piece, key)
                self._staleness[0] += 1
            self._step(piece, place, total, None, 1.0)
        piece.staged.clear()
        piece.n_rounds += 1

    # For the driver.

    @property
    def n_updates(self) -> int:
        """Of the piece that has had the most."""
        return max((piece.n_updates for piece in self._pieces.values()), default=0)

    @property
    def staleness(self) -> StalenessCounts:
        """How many pushes were how stale, by bin."""
        return tuple(self._staleness)

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return self._spec.rule.rate(self.n_updates)

    def applied(self, lease: LeaseKey, n_pieces: int) -> int:
        """The last mini-batch of a lease that every piece has applied; -1 for none."""
        marks = [piece.marks.get(lease, -1) for piece in self._pieces.values()]
        return min(marks) if len(marks) == n_pieces else -1

    @property
    def n_lost(self) -> int:
        """Mini-batches that were lost when a piece was put back, of the piece that has lost the most."""
        return max((piece.n_lost for piece in self._pieces.values()), default=0)

    def marks(self, of_any: bool = False) -> dict[LeaseKey, int]:
        """Tell, per lease, the last mini-batch that every piece has, or that any has; -1 for none."""
        leases = {lease for piece in self._pieces.values() for lease in piece.marks}
        chosen = max if of_any else min
        return {lease: chosen(piece.marks.get(lease, -1) for piece in self._pieces.values()) for lease in leases}

    def advance(self, marks: Mapping[LeaseKey, int], held: Mapping[LeaseKey, int]) -> int:
        """Count mini-batches as applied that pieces, put back to an older state, have lost; gives their number.

        Parameters
        ----------
        marks
            Per lease the last mini-batch that is to count as applied.
        held
            Per lease the last mini-batch that the values hold although the pieces have no mark of it: not lost.
        """
        marks = {lease: mark for lease, mark in marks.items() if lease not in self._finished}

        def n_missing(known: Mapping[LeaseKey, int]) -> int:
            has = {lease: max(known.get(lease, -1), held.get(lease, -1)) for lease in marks}
            return sum(max(0, mark - has[lease]) for lease, mark in marks.items())

        if not self._pieces:
            self._marks_at_first, self._lost_at_first = dict(marks), n_missing({})
            return self._lost_at_first
        lost = 0
        for piece in self._pieces.values():
            n_lost = n_missing(piece.marks)
            piece.marks |= {lease: mark for lease, mark in marks.items() if mark > piece.marks.get(lease, -1)}
            piece.n_lost += n_lost
            lost = max(lost, n_lost)
        return lost

    @property
    def finished(self) -> Finished:
        """The leases whose marks were dropped."""
        return self._finished

    @property
    def n_rounds(self) -> int:
        """Rounds that were closed, of the piece that has seen the most."""
        return max((piece.n_rounds for piece in self._pieces.values()), default=0)

    def save(self, place: slice, with_staged: bool = False) -> SavedPiece:
        """Give a copy of all that is kept for one piece, as of one instant; of the present round only when asked."""
        piece = self._pieces.get(place.start) or self._new_piece()
        return SavedPiece(
            values=self._vectors[VALUES][place].copy(),
            state={name: self._vectors[STATE + name][place].copy() for name in self.state_names},
            marks=dict(piece.marks),
            n_updates=piece.n_updates,
            n_rounds=piece.n_rounds,
            n_lost=piece.n_lost,
            staged={key: gradient.copy() for key, gradient in piece.staged.items()} if with_staged else {},
            caught_up=None if piece.caught_up is None or not with_staged else frozenset(piece.caught_up),
        )

    def restore(self, offset: int, saved: SavedPiece, is_behind: bool = False) -> None:
        """Put a saved piece in place; one that is behind the other pieces may find that pushes were lost."""
        place = slice(offset, offset + len(saved.values))
        self._vectors.make(VALUES)[place] = saved.values
        self.state_names = tuple(saved.state)
        for name, values in saved.state.items():
            self._vectors.make(STATE + name)[place] = values
        marks = {LeaseKey(*lease): mark for lease, mark in saved.marks.items()}
        staged = {PushKey.of(key): gradient for key, gradient in saved.staged.items()}
        caught_up = None if saved.caught_up is None else {LeaseKey(*lease) for lease in saved.caught_up}
        if is_behind:
            caught_up = set()
        self._pieces[offset] = _Piece(saved.n_updates, marks, saved.n_rounds, staged, caught_up, saved.n_lost)

    def forget_marks(self, finished: Finished) -> None:
        """Drop the marks of leases that the ledger's saved state covers; what is pushed for them later is dropped."""
        self._finished = finished
        for piece in self._pieces.values():
            piece.marks = {lease: mark for lease, mark in piece.marks.items() if lease not in finished}
            if piece.caught_up is not None:
                piece.caught_up = {lease for lease in piece.caught_up if lease not in finished}

    def take_log(self, offset: int) -> list[Logged]:
        """Give the exchanges with one piece since the last time, in their order."""
        piece = self._pieces.get(offset, _Piece())
        log, piece.log = piece.log, []
        return log


def _rounded(values: Vector) -> Sent:
    """Give a copy of values as bfloat16."""
    bits: Sent = np.empty(len(values), np.uint16)
    get_backend("numpy").to_bfloat16_(values, bits)
    return bits
