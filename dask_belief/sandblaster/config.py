"""The options of Sandblaster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, fields
from typing import Any, cast

from dask_belief.checks import check_count, check_number
from dask_belief.errors import ArgumentError
from dask_belief.optim.conjugate_gradient import ConjugateGradient
from dask_belief.optim.descent import GradientDescent
from dask_belief.optim.direction import DirectionRule
from dask_belief.optim.lbfgs import CurvatureMemory, MemoryConfig

DIRECTIONS = ("lbfgs", "conjugate_gradient", "gradient_descent")
FIRST_HESSIANS = ("scaled", "adagrad")

# SciPy's names for options of ours.
_SCIPY = {
    "maxiter": "max_iter",
    "maxfun": "max_evaluations",
    "maxcor": "history_size",
    "maxls": "max_search_evaluations",
}


@dataclass(frozen=True)
class Sandblaster:
    """A batch method whose every value and gradient is a pass over all rows, shared by all workers (section 4.2).

    L-BFGS unless `direction` says otherwise. The objective is the mean over rows of the loss plus
    ``l2 / 2 * ||w||^2 + l1 * ||w||_1``. With `l1` the method is OWL-QN (Andrew and Gao, ICML 2007), and many
    parameters end at exactly zero.

    Parameters
    ----------
    max_iter
        Iterations at most.
    history_size
        Curvature pairs kept on the shards (the ``m`` of L-BFGS).
    l2, l1
        Weights of the penalties, zero or more. A Network's biases, and layers made with ``penalised=False``, are left
        out of both.
    gtol
        Ends when the largest magnitude in the gradient of the objective is at most this; with `l1`, in the
        pseudo-gradient.
    ftol
        Ends when an iteration lowers the objective by at most this, relative to ``max(|f|, 1)``.
    max_evaluations, max_seconds
        Further limits, None for none. Evaluations are looked at after each iteration. Time is looked at during
        evaluations, too: one that is under way is given up.
    direction
        ``"lbfgs"``, ``"conjugate_gradient"`` (Polak-Ribiere+), ``"gradient_descent"``, or a function without arguments
        that makes a `DirectionRule` of your own.
    first_hessian
        Where L-BFGS begins its approximation: ``"scaled"``, a multiple of the identity; or ``"adagrad"``, a diagonal
        from Adagrad's sums, which come from a Downpour by that rule, either before this method in one call or as the
        result that is given as ``initial=``. None for ``"adagrad"`` after such a Downpour in one call, else
        ``"scaled"``.
    damping
        Powell's damping of pairs with too little curvature, for L-BFGS without `l1`; else such pairs are left out.
    c1, c2
        The constants of the line search: the share of the promised decrease that a step must bring, and of the slope
        that it may leave. None for what suits `direction`. With `l1` only `c1` counts.
    max_search_evaluations
        Evaluations along one direction.
    n_shards
        Parameter shards; None for one a worker. A shard holds at least 65,536 parameters.
    unit_rows
        Rows of a work unit; None to derive them from the chunk grid and the objective's size.
    cache_bytes
        Decoded data that a replica keeps between passes, where it computes; None for four tenths of its worker's memory
        limit, divided by the worker's threads (1 GiB where there is no limit), or of what is free on its GPU.
    backup_after
        A lease that is out so many times longer than expected is copied to an idle replica, and the first to finish
        counts. 0 for every lease at once when a replica is idle; None for never.
    maxiter, maxfun, maxcor, maxls
        SciPy's names of `max_iter`, `max_evaluations`, `history_size` and `max_search_evaluations`.

    Raises
    ------
    ArgumentError
        For a value out of range, or options that do not go together, with the names.
    """

    max_iter: int = 100
    history_size: int = 10
    l2: float = 0.0
    l1: float = 0.0
    gtol: float = 1e-5
    ftol: float = 1e-9
    max_evaluations: int | None = None
    max_seconds: float | None = None
    direction: str | Callable[[], DirectionRule] = "lbfgs"
    first_hessian: str | None = None
    damping: bool = False
    c1: float = 1e-4
    c2: float | None = None
    max_search_evaluations: int = 20
    n_shards: int | None = None
    unit_rows: int | None = None
    cache_bytes: int | None = None
    backup_after: float | None = 1.5
    maxiter: InitVar[int | None] = None
    maxfun: InitVar[int | None] = None
    maxcor: InitVar[int | None] = None
    maxls: InitVar[int | None] = None

    def __post_init__(self, maxiter: int | None, maxfun: int | None, maxcor: int | None, maxls: int | None) -> None:
        for (theirs, ours), value in zip(_SCIPY.items(), (maxiter, maxfun, maxcor, maxls), strict=True):
            if value is not None:
                self._take(theirs, ours, value)
        for name in ("max_iter", "history_size", "max_search_evaluations"):
            check_count(name, getattr(self, name))
        for name in ("l2", "l1", "gtol", "ftol"):
            check_number(name, getattr(self, name), low=0.0)
        for name in ("max_evaluations", "n_shards", "unit_rows"):
            check_count(name, getattr(self, name), may_be_none=True)
        check_count("cache_bytes", self.cache_bytes, low=0, may_be_none=True)
        for name in ("max_seconds", "backup_after"):
            check_number(name, getattr(self, name), low=0.0, may_be_none=True)
        self._check_search()
        self._check_direction()

    def _take(self, theirs: str, ours: str, value: Any) -> None:
        """Take an option by SciPy's name; both names at once, with two values, are refused."""
        default = type(self).__dataclass_fields__[ours].default
        if getattr(self, ours) not in (default, value):
            raise ArgumentError(f"{theirs}: is {ours} by SciPy's name, which was given as {getattr(self, ours)} too.")
        object.__setattr__(self, ours, value)

    def _check_search(self) -> None:
        check_number("c1", self.c1, low=0.0, is_open=True)
        check_number("c2", self.c2, low=0.0, is_open=True, may_be_none=True)
        if self.c1 >= 0.5 or (self.c2 is not None and not self.c1 < self.c2 < 1):
            raise ArgumentError(f"c1, c2: expected 0 < c1 < 0.5 and c1 < c2 < 1, got {self.c1} and {self.c2}.")

    def _check_direction(self) -> None:
        if not callable(self.direction) and self.direction not in DIRECTIONS:
            known = ", ".join(repr(each) for each in DIRECTIONS)
            raise ArgumentError(
                f"direction: expected {known}, or a function that makes a DirectionRule, got {self.direction!r}."
            )
        if self.first_hessian is not None and self.first_hessian not in FIRST_HESSIANS:
            raise ArgumentError(f"first_hessian: expected 'scaled', 'adagrad' or None, got {self.first_hessian!r}.")
        if not isinstance(self.damping, bool):
            raise ArgumentError(f"damping: expected True or False, got {self.damping!r}.")
        if self.direction != "lbfgs" and (self.damping or self.first_hessian == "adagrad"):
            raise ArgumentError("direction: damping and first_hessian are L-BFGS's; leave them out, or use 'lbfgs'.")
        if self.direction == "conjugate_gradient" and self.l1:
            raise ArgumentError("direction: conjugate gradients do not go with l1, whose steps leave the line.")
        if self.damping and self.l1:
            raise ArgumentError("damping: does not go with l1, whose steps leave the line. Leave one of them out.")

    @property
    def name(self) -> str:
        """What people call it."""
        if callable(self.direction):
            return f"Sandblaster {getattr(self.direction, '__name__', type(self.direction).__name__)}"
        quasi_newton = "OWL-QN" if self.l1 else "L-BFGS"
        return f"Sandblaster {quasi_newton if self.direction == 'lbfgs' else self.direction.replace('_', ' ')}"

    def direction_rule(self, config: Mapping[str, Any] | None = None) -> DirectionRule:
        """Make what decides directions.

        Parameters
        ----------
        config
            What is known already, from the rule's ``to_config``; None for nothing.

        Raises
        ------
        ArgumentError
            When `direction` makes something else, or something that does not know `config`.
        """
        if callable(self.direction):
            rule = self.direction()
            if not isinstance(rule, DirectionRule):
                raise ArgumentError(
                    f"direction: expected a function that makes a DirectionRule, it made a {type(rule).__name__}."
                )
            if config is None:
                return rule
            if not hasattr(rule, "from_config"):
                raise ArgumentError(f"direction: {type(rule).__name__} has no from_config, to go on from a checkpoint.")
            known: DirectionRule = type(rule).from_config(config)
            return known
        if self.direction == "conjugate_gradient":
            return ConjugateGradient() if config is None else ConjugateGradient.from_config(config)
        if self.direction == "gradient_descent":
            return GradientDescent() if config is None else GradientDescent.from_config(config)
        if config is not None:
            return CurvatureMemory.from_config(cast(MemoryConfig, config))
        return CurvatureMemory(self.history_size, is_damped=self.damping, has_diagonal=self.first_hessian == "adagrad")

    def check_saves(self) -> None:
        """Refuse a direction of the user's own that cannot go to a checkpoint; raises `ArgumentError`."""
        if not callable(self.direction):
            return
        rule = self.direction_rule()
        if not (hasattr(rule, "to_config") and hasattr(rule, "from_config")):
            raise ArgumentError(
                f"checkpoint: {type(rule).__name__} has no to_config and from_config, by which what it knows is saved. "
                "Give it both (see DirectionRule), or leave checkpoint= out."
            )

    def to_config(self) -> dict[str, Any]:
        """Describe the options by plain JSON; a direction of the user's own is left out, and is to be given again."""
        config = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return config | {"direction": None if callable(self.direction) else self.direction}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sandblaster:
        """Rebuild the options from `to_config`.

        Raises
        ------
        ArgumentError
            An option is unknown or out of range, or the direction was the user's own.
        """
        if config.get("direction", "lbfgs") is None:
            raise ArgumentError("method: the direction was a function of your own; give the method again as method=.")
        try:
            return cls(**config)
        except TypeError as error:
            raise ArgumentError(f"config: Sandblaster cannot be made with {sorted(config)}: {error}") from error
