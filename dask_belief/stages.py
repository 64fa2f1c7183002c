"""Methods that run one after another: what each hands on to the next, and which point is the best of them.

::

    initial ──> Downpour ──> best point so far ──> Sandblaster ──> best point so far ──> ...
                    └──────── Adagrad's sums ─────────┘

Each method is a `Run` with its own clock and its own name on the cluster, and its limits count from its own start. What
listeners hear runs on: the seconds and passes of the methods before are added to each event.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_belief.downpour.config import Downpour
from dask_belief.downpour.driver import DownpourDriver
from dask_belief.errors import ArgumentError, NonFiniteError
from dask_belief.model_parallel.partitioned import users_order
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import Event, Stopped, moved_on
from dask_belief.optim.rules import ADAGRAD_SUMS, Adagrad
from dask_belief.optim.stopping import Stop, StopReason, number_from_json, number_to_json
from dask_belief.run import Facts, Outcome, Run, Vector
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.driver import SandblasterDriver

logger = logging.getLogger(__name__)

Method = Sandblaster | Downpour

# The names of vectors that a checkpoint holds of the methods before the one that runs.
_POINT_BEFORE = "before"
_STATE_BEFORE = "before:"
SUMS_BEFORE = "sums-before"

# Whoever asks for an end means the whole run.
_ENDS_ALL = (StopReason.CALLBACK, StopReason.INTERRUPTED)


@dataclass(frozen=True)
class Trained:
    """What methods gave that ran one after another.

    Attributes
    ----------
    outcome
        The best point, with passes of all methods, and `stop` and `rule_state` of the last one.
    name
        Of the methods that ran.
    seconds
        From the start of the first to the end of the last.
    """

    outcome: Outcome
    name: str
    seconds: float


def check_handover(methods: Sequence[Method]) -> None:
    """Refuse a method that asks for Adagrad's sums where the one before it has none; raises `ArgumentError`."""
    for before, method in itertools.pairwise(methods):
        if isinstance(method, Sandblaster) and method.first_hessian == "adagrad" and not _keeps_sums(before):
            raise ArgumentError(
                "first_hessian: 'adagrad' takes the sums of the method before, which must be a Downpour by the rule "
                f"Adagrad, got {before!r}."
            )


@dataclass(frozen=True)
class Begun:
    """What methods have given that ran one after another, with others to come.

    Attributes
    ----------
    n_run
        How many have run.
    outcome
        What they gave together; None before the first.
    seconds
        How long they took.
    """

    n_run: int = 0
    outcome: Outcome | None = None
    seconds: float = 0.0

    def to_config(self) -> dict[str, Any]:
        """Describe it by plain JSON, without the vectors."""
        outcome = self.outcome
        return {
            "n_run": self.n_run,
            "seconds": self.seconds,
            "outcome": None
            if outcome is None
            else {
                "loss": number_to_json(outcome.loss),
                "stop": outcome.stop.to_config(),
                "passes": outcome.passes,
                "repeatable": outcome.repeatable,
                "validation": {name: number_to_json(mean) for name, mean in outcome.validation.items()},
                "rule_state": sorted(outcome.rule_state),
            },
        }

    def vectors(self) -> dict[str, Vector]:
        """The vectors that `to_config` leaves out, by the names under which a checkpoint holds them."""
        if self.outcome is None:
            return {}
        state = {f"{_STATE_BEFORE}{name}": vector for name, vector in self.outcome.rule_state.items()}
        return {_POINT_BEFORE: self.outcome.parameters, **state}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], read: Callable[[str], Vector]) -> Begun:
        """Rebuild it; `read` gives a vector by its name. Raises `KeyError`, `TypeError` or `ValueError` for damage."""
        kept = config["outcome"]
        outcome = None
        if kept is not None:
            outcome = Outcome(
                parameters=read(_POINT_BEFORE),
                loss=number_from_json(kept["loss"]),
                stop=Stop.from_config(kept["stop"]),
                passes=float(kept["passes"]),
                repeatable=bool(kept["repeatable"]),
                validation={str(name): number_from_json(mean) for name, mean in kept["validation"].items()},
                rule_state={str(name): read(f"{_STATE_BEFORE}{name}") for name in kept["rule_state"]},
            )
        return cls(int(config["n_run"]), outcome, float(config["seconds"]))


class Stages:
    """Runs methods one after another, each from the best point of those before.

    Parameters
    ----------
    methods
        One or more.
    facts
        What is trained, and where the first method begins; or, of a run that is resumed, where the one begins that was
        broken off.
    listeners
        Hear the events of all methods as of one run.
    begun
        What the methods have given that were through when a run was broken off that is resumed.
    """

    def __init__(
        self, methods: Sequence[Method], facts: Facts, listeners: CallbackList, begun: Begun | None = None
    ) -> None:
        self._methods = tuple(methods)
        self._facts = facts
        self._listeners = listeners
        # Of the methods that have run: how many they are, what they gave together, and how long they took.
        begun = Begun() if begun is None else begun
        self._n_run = self._n_begun = begun.n_run
        self._outcome = begun.outcome
        self._seconds = begun.seconds

    def train(self) -> Trained:
        """Run the methods; those after one that a callback or the user broke off are not run.

        What is raised instead carries the best point that is on the host as ``kept_parameters``.
        """
        for method in self._methods[self._n_begun :]:
            try:
                outcome = self._train_by(method)
            except BaseException as error:
                self._attach_point(error)
                raise
            if outcome.stop.reason in _ENDS_ALL:
                break
        return Trained(outcome, ", then ".join(method.name for method in self._methods[: self._n_run]), self._seconds)

    def _train_by(self, method: Method) -> Outcome:
        """Run the next method, and give what all until now gave together."""
        facts = self._next_facts(method)
        run = Run(facts, self._running_on(facts.seconds_before))
        outcome = _drive(run, _with_first_hessian(method, facts.adagrad_sums))
        # Looked at once: what comes next begins where this one stopped.
        seconds = run.seconds
        self._outcome = self._joined(method, outcome)
        self._n_run += 1
        self._seconds += facts.seconds_before + seconds
        run.emit(Stopped(outcome.stop, seconds, outcome.passes))
        logger.info("%s: %s. %s", method.name, outcome.stop, outcome.stop.advice)
        asked = run.asked_to_stop(passes=self._outcome.passes)
        if asked and self._n_run < len(self._methods) and outcome.stop.reason not in _ENDS_ALL:
            # A callback asked when the method had come to its own end, or because it had.
            self._outcome = replace(self._outcome, stop=asked)
        return self._outcome

    def _next_facts(self, method: Method) -> Facts:
        """Where the next method begins, under a name that no message of those before carries."""
        begun = Begun(self._n_run, self._outcome, self._seconds)
        facts = replace(self._facts, description={**self._facts.description, "begun": begun.to_config()})
        if self._outcome is None or self._n_run == self._n_begun:
            return self._carrying(facts, begun)
        sums = None
        if _takes_sums(method) and _keeps_sums(self._methods[self._n_run - 1]):
            sums = self._outcome.rule_state.get(ADAGRAD_SUMS)
            if sums is None:
                logger.warning("Adagrad's sums are not finite: %s begins with first_hessian='scaled'.", method.name)
        facts = replace(
            facts,
            name=new_name(),
            initial=self._outcome.parameters,
            adagrad_sums=sums,
            resumed=None,
            seconds_before=0.0,
        )
        return self._carrying(facts, begun)

    @staticmethod
    def _carrying(facts: Facts, begun: Begun) -> Facts:
        """Let what a run would need that goes on from a checkpoint be saved with each state."""
        sums = {} if facts.adagrad_sums is None else {SUMS_BEFORE: facts.adagrad_sums}
        return replace(facts, carried={**begun.vectors(), **sums})

    def _running_on(self, seconds_before: float) -> Callable[[Event], bool]:
        """Hand events on as of one run."""
        seconds = self._seconds + seconds_before
        passes = 0.0 if self._outcome is None else self._outcome.passes
        return lambda event: self._listeners(moved_on(event, seconds, passes))

    def _joined(self, method: Method, outcome: Outcome) -> Outcome:
        before = self._outcome
        if before is None:
            return outcome
        best = outcome
        if not is_as_good(before, outcome, self._methods[self._n_run - 1], method):
            logger.info("%s ended higher than it began: the point at which it began is kept", method.name)
            best = before
        return replace(
            outcome,
            parameters=best.parameters,
            loss=best.loss,
            validation=best.validation,
            passes=before.passes + outcome.passes,
            repeatable=before.repeatable and outcome.repeatable,
        )

    def _attach_point(self, error: BaseException) -> None:
        """Give an error the best point of the methods that have ended, unless it has one of the method under way."""
        has_one = getattr(error, "kept_parameters", None) is not None
        # What a method that diverged has kept is on the way there.
        if self._outcome is not None and (not has_one or isinstance(error, NonFiniteError)):
            _attach(error, users_order(self._facts.objective, self._outcome.parameters))


def is_as_good(before: Outcome, after: Outcome, method_before: Method, method: Method) -> bool:
    """Whether the point that `method` gave is no worse than the one that it began at, which `method_before` gave.

    By the validation loss where `method` goes by it, as Downpour does; else by the objective over all training rows.
    Objectives with different penalties cannot be compared, and what is asked for last counts.
    """
    if _penalties(method_before) != _penalties(method):
        return True
    now, then = after.loss, before.loss
    if isinstance(method, Downpour) and (before.validation or after.validation):
        now, then = (each.validation.get("loss", math.nan) for each in (after, before))
    return now <= then or math.isnan(then)


def new_name() -> str:
    """Make a name for a run that no other on the cluster has."""
    return uuid.uuid4().hex[:8]


def _drive(run: Run, method: Method) -> Outcome:
    """Train to the end; whatever is raised instead carries the best parameters that were kept."""
    driver = SandblasterDriver(run, method) if isinstance(method, Sandblaster) else DownpourDriver(run, method)
    try:
        return driver.drive()
    except BaseException as error:
        # Also on errors of others, a callback's for one: nothing that was found is lost.
        _attach(error, users_order(run.facts.objective, driver.kept()))
        raise


def _attach(error: BaseException, parameters: Vector) -> None:
    with contextlib.suppress(AttributeError):
        error.kept_parameters = parameters  # type: ignore[attr-defined]


def _penalties(method: Method) -> tuple[float, float]:
    return method.l2, method.l1 if isinstance(method, Sandblaster) else 0.0


def _keeps_sums(method: Method) -> bool:
    """Whether a method ends with Adagrad's sums of squared gradients."""
    return isinstance(method, Downpour) and isinstance(method.rule, Adagrad)


def _takes_sums(method: Method) -> bool:
    """Whether a method begins from Adagrad's sums where there are any."""
    return isinstance(method, Sandblaster) and method.direction == "lbfgs" and method.first_hessian != "scaled"


def _with_first_hessian(method: Method, sums: Vector | None) -> Method:
    """Say where L-BFGS begins, where the method leaves it open or asks for what is not there."""
    if not (isinstance(method, Sandblaster) and _takes_sums(method)):
        return method
    return replace(method, first_hessian="scaled" if sums is None else "adagrad")
