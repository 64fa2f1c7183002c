"""Update rules: how a gradient changes parameters, in place, with the rule's state in its arguments.

::

    state = rule.init(values)
    rule.apply(values, gradient, state, learning_rate)

A rule holds options only. So one rule serves every shard and every replica, each with state of its own, and the state
is saved and moved like any other vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend, get_backend
from dask_belief.checks import check_number
from dask_belief.errors import ArgumentError

FloatVector: TypeAlias = NDArray[np.floating[Any]]
State: TypeAlias = dict[str, FloatVector]
"""A rule's vectors by name, each of the parameters' length and dtype; empty for a rule that remembers nothing."""


@runtime_checkable
class Rule(Protocol):
    """What Downpour asks of a rule.

    Conventions: vectors are flat and of one dtype and length; everything happens in place; vectors of a GPU go with the
    `backend` that they belong to, and None means NumPy.
    """

    name: ClassVar[str]
    """What the rule is called in JSON."""

    @property
    def learning_rate(self) -> float:
        """The rate that is used when `apply` is given none."""

    def init(self, values: FloatVector) -> State:
        """Make the state for parameters of this length, dtype and device."""

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        learning_rate: float | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Change `values` and `state` by one gradient; `learning_rate` overrides the rule's own for this step."""

    def to_config(self) -> dict[str, str | float]:
        """Describe the rule by plain JSON."""


@dataclass(frozen=True)
class SGD:
    """Plain gradient descent: ``values -= learning_rate * gradient``.

    Parameters
    ----------
    learning_rate
        Positive.

    Raises
    ------
    ArgumentError
        `learning_rate` is not positive and finite.
    """

    name: ClassVar[str] = "sgd"
    learning_rate: float

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, low=0.0, is_open=True)

    def init(self, values: FloatVector) -> State:
        """Make the empty state: the rule remembers nothing."""
        return {}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        learning_rate: float | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Change `values` by one gradient."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        (backend or get_backend("numpy")).sgd_(values, gradient, rate)

    def to_config(self) -> dict[str, str | float]:
        """Describe the rule by plain JSON."""
        return {"rule": self.name, **asdict(self)}


@dataclass(frozen=True)
class Momentum:
    """Heavy-ball momentum (Polyak 1964), with the rate outside the velocity, so that a changed rate acts at once.

    ::

        velocity = momentum * velocity + gradient
        values -= learning_rate * velocity

    Parameters
    ----------
    learning_rate
        Positive.
    momentum
        The share of the velocity that is kept from step to step, in ``[0, 1)``.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "momentum"
    learning_rate: float
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, low=0.0, is_open=True)
        check_number("momentum", self.momentum, low=0.0)
        if self.momentum >= 1:
            raise ArgumentError(f"momentum: a number less than 1 is needed, got {self.momentum}; 0.9 is usual")

    def init(self, values: FloatVector) -> State:
        """Make a velocity of zero."""
        return {"velocity": np.zeros_like(values)}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        learning_rate: float | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Change the velocity by one gradient, and `values` by the velocity."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        velocity = _known(state, "velocity")
        (backend or get_backend("numpy")).momentum_(values, gradient, velocity, rate, self.momentum)

    def to_config(self) -> dict[str, str | float]:
        """Describe the rule by plain JSON."""
        return {"rule": self.name, **asdict(self)}


@dataclass(frozen=True)
class Adagrad:
    """A rate for each parameter, that falls with the squares of its gradients (Duchi, Hazan and Singer 2011).

    ::

        accumulator += gradient**2
        values -= learning_rate * gradient / (sqrt(accumulator) + epsilon)

    The rule of the paper's Downpour: it makes asynchronous training robust, since parameters that change much are held
    back, and the accumulator needs no agreement between shards.

    Parameters
    ----------
    learning_rate
        Positive.
    initial_accumulator
        What the accumulator starts from, zero or more. Above zero, the first gradients are not blown up to full steps.
    epsilon
        Keeps the divisor from zero, positive.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "adagrad"
    learning_rate: float
    initial_accumulator: float = 0.1
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, low=0.0, is_open=True)
        check_number("epsilon", self.epsilon, low=0.0, is_open=True)
        check_number("initial_accumulator", self.initial_accumulator, low=0.0)

    def init(self, values: FloatVector) -> State:
        """Make the accumulator, `initial_accumulator` for every parameter."""
        return {"accumulator": np.full_like(values, self.initial_accumulator)}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        learning_rate: float | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Change the accumulator by one gradient, and `values` by the gradient scaled with it."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        accumulator = _known(state, "accumulator")
        (backend or get_backend("numpy")).adagrad_(values, gradient, accumulator, rate, self.epsilon)

    def to_config(self) -> dict[str, str | float]:
        """Describe the rule by plain JSON."""
        return {"rule": self.name, **asdict(self)}


ADAGRAD_SUMS = "accumulator"
"""The name of Adagrad's sums of squared gradients among a rule's state."""

AnyRule: TypeAlias = SGD | Momentum | Adagrad

_RULES: Mapping[str, type[AnyRule]] = {rule.name: rule for rule in (SGD, Momentum, Adagrad)}


def rule_from_config(config: Mapping[str, str | float]) -> AnyRule:
    """Rebuild a rule from its `to_config`.

    Raises
    ------
    ArgumentError
        The rule or one of its options is unknown.
    """
    options = dict(config)
    name = options.pop("rule", None)
    if name not in _RULES:
        raise ArgumentError(f"rule: one of {', '.join(_RULES)} is needed, got {name!r}")
    try:
        return _RULES[str(name)](**options)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentError(f"rule: {name} cannot be made with {sorted(options)}: {error}") from error


def _known(state: State, name: str) -> FloatVector:
    if name not in state:
        raise ArgumentError(f"state: this rule needs {name!r}, got {sorted(state)}; make it with init(values)")
    return state[name]
