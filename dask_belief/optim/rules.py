"""Update rules: how a gradient changes parameters, in place, with the rule's state in its arguments.

::

    state = rule.init(values)
    rule.apply(values, gradient, state, n_updates)

A rule holds options only. So one rule serves every shard and every replica, each with state of its own, and the state
is saved and moved like any other vector. What depends on time, a scheduled rate or Adam's correction, depends on the
number of updates that the values have had, which is an argument, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend, get_backend
from dask_belief.checks import check_number
from dask_belief.errors import ArgumentError
from dask_belief.optim.schedules import Rate, check_rate, rate_at, rate_from_config, rate_to_config

FloatVector: TypeAlias = NDArray[np.floating[Any]]
State: TypeAlias = dict[str, FloatVector]
"""A rule's vectors by name, each of the parameters' length and dtype; empty for a rule that remembers nothing."""


@runtime_checkable
class Rule(Protocol):
    """What Downpour asks of a rule.

    Conventions: vectors are flat and of one dtype and length; everything happens in place, and element by element, so
    that a rule may be applied piece by piece; vectors of a GPU go with the `backend` that they belong to, and None
    means NumPy.
    """

    name: ClassVar[str]
    """What the rule is called in JSON."""

    @property
    def learning_rate(self) -> Rate:
        """A positive number, or a schedule by the number of updates."""

    def rate(self, n_updates: int) -> float:
        """Give the learning rate of the update after `n_updates`."""

    def init(self, values: FloatVector) -> State:
        """Make the state for parameters of this length, dtype and device."""

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change `values` and `state` by one gradient, without an array of their length beside them.

        `n_updates` is how many updates they have had before, and the rate is ``rate(n_updates) * rate_factor``.
        """

    def to_config(self) -> dict[str, Any]:
        """Describe the rule by plain JSON."""


@dataclass(frozen=True)
class _RuleWithRate:
    """What the rules below share.

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.
    """

    name: ClassVar[str]
    learning_rate: Rate

    def __post_init__(self) -> None:
        check_rate("learning_rate", self.learning_rate)

    def rate(self, n_updates: int) -> float:
        """Give the learning rate of the update after `n_updates`."""
        return rate_at(self.learning_rate, n_updates)

    def to_config(self) -> dict[str, Any]:
        """Describe the rule by plain JSON."""
        options = {entry.name: rate_to_config(getattr(self, entry.name)) for entry in fields(self)}
        return {"rule": self.name, **options}


@dataclass(frozen=True)
class SGD(_RuleWithRate):
    """Plain gradient descent: ``values -= learning_rate * gradient``.

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.

    Raises
    ------
    ArgumentError
        `learning_rate` is not positive and finite.
    """

    name: ClassVar[str] = "sgd"

    def init(self, values: FloatVector) -> State:
        """Make the empty state: the rule remembers nothing."""
        return {}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change `values` by one gradient."""
        (backend or get_backend("numpy")).sgd_(values, gradient, rate_factor * self.rate(n_updates))


@dataclass(frozen=True)
class _WithVelocity(_RuleWithRate):
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("momentum", self.momentum, "0.9 is usual")

    def init(self, values: FloatVector) -> State:
        """Make a velocity of zero."""
        return {"velocity": np.zeros_like(values)}


@dataclass(frozen=True)
class Momentum(_WithVelocity):
    """Heavy-ball momentum (Polyak 1964), with the rate outside the velocity, so that a changed rate acts at once.

    ::

        velocity = momentum * velocity + gradient
        values -= learning_rate * velocity

    The velocity begins at zero. In Downpour the pushes of other replicas act as momentum, too (Mitliagkas,
    Zhang, Hadjis and Re, "Asynchrony begets momentum", 2016): the more of them, the less is needed here.

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.
    momentum
        The share of the velocity that is kept from step to step, in ``[0, 1)``.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "momentum"

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change the velocity by one gradient, and `values` by the velocity."""
        rate, velocity = rate_factor * self.rate(n_updates), _known(state, "velocity")
        (backend or get_backend("numpy")).momentum_(values, gradient, velocity, rate, self.momentum)


@dataclass(frozen=True)
class Nesterov(_WithVelocity):
    """Nesterov's accelerated gradient (1983), as Sutskever, Martens, Dahl and Hinton (ICML 2013) use it.

    ::

        velocity = momentum * velocity + gradient
        values -= learning_rate * (gradient + momentum * velocity)

    The velocity begins at zero. The values are those of the point ahead, where the next gradient is found, so that no
    second point is needed (Bengio, Boulanger-Lewandowski and Pascanu, "Advances in optimizing recurrent networks",
    ICASSP 2013).

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.
    momentum
        The share of the velocity that is kept from step to step, in ``[0, 1)``.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "nesterov"

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change the velocity by one gradient, and `values` by the gradient and what the velocity will bring."""
        rate, velocity = rate_factor * self.rate(n_updates), _known(state, "velocity")
        (backend or get_backend("numpy")).nesterov_(values, gradient, velocity, rate, self.momentum)


@dataclass(frozen=True)
class Adagrad(_RuleWithRate):
    """A rate for each parameter, that falls with the squares of its gradients (Duchi, Hazan and Singer 2011).

    ::

        accumulator += gradient**2
        values -= learning_rate * gradient / (sqrt(accumulator) + epsilon)

    This is the paper's formula (section 4.1): the rate of parameter ``i`` in update ``K`` is ``eta = gamma /
    sqrt(sum of dw_i**2 over updates 1 to K)``, with gamma our `learning_rate`. What we add is an initial accumulator,
    from which the sum starts, and an epsilon, which keeps 0/0 away; ``initial_accumulator=0`` is the paper's own, whose
    first update moves every parameter by gamma, however small its gradient. The paper finds that it makes Downpour
    robust: parameters that change much are held back, and the sums need no agreement between shards.

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.
    initial_accumulator
        What the accumulator starts from, zero or more. Above zero, the first gradients are not blown up to full steps.
    epsilon
        Added to the root, positive. Of float32 it changes nothing where the root is above a quarter, at the default.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.

    Examples
    --------
    >>> rule, values = Adagrad(0.1, initial_accumulator=0.0), np.zeros(2)
    >>> state = rule.init(values)
    >>> rule.apply(values, np.array([3.0, -4.0]), state)
    >>> values.round(6), state["accumulator"]
    (array([-0.1,  0.1]), array([ 9., 16.]))
    """

    name: ClassVar[str] = "adagrad"
    initial_accumulator: float = 0.1
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, low=0.0, is_open=True)
        check_number("initial_accumulator", self.initial_accumulator, low=0.0)

    def init(self, values: FloatVector) -> State:
        """Make the accumulator, `initial_accumulator` for every parameter."""
        return {ADAGRAD_SUMS: np.full_like(values, self.initial_accumulator)}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change the accumulator by one gradient, and `values` by the gradient scaled with it."""
        rate, accumulator = rate_factor * self.rate(n_updates), _known(state, ADAGRAD_SUMS)
        (backend or get_backend("numpy")).adagrad_(values, gradient, accumulator, rate, self.epsilon)


@dataclass(frozen=True)
class RMSProp(_RuleWithRate):
    """A rate for each parameter by the recent size of its gradients (Tieleman and Hinton 2012, lecture 6.5).

    ::

        square = decay * square + (1 - decay) * gradient**2
        values -= learning_rate * gradient / (sqrt(square) + epsilon)

    The mean square begins at zero, and is not corrected for it: the first step is ``1 / sqrt(1 - decay)`` times the
    learning rate, 3.2 times at the default. A `Warmup` takes that away.

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.
    decay
        The share of the mean square that is kept from step to step, in ``[0, 1)``.
    epsilon
        Added to the root, positive.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "rmsprop"
    decay: float = 0.9
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("decay", self.decay, "0.9 is usual")
        check_number("epsilon", self.epsilon, low=0.0, is_open=True)

    def init(self, values: FloatVector) -> State:
        """Make a mean square of zero."""
        return {"square": np.zeros_like(values)}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change the mean square by one gradient, and `values` by the gradient scaled with it."""
        rate, square = rate_factor * self.rate(n_updates), _known(state, "square")
        (backend or get_backend("numpy")).rmsprop_(values, gradient, square, rate, 1.0 - self.decay, self.epsilon)


@dataclass(frozen=True)
class Adam(_RuleWithRate):
    """Adaptive moment estimation (Kingma and Ba 2015, Algorithm 1).

    ::

        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        t = n_updates + 1
        values -= learning_rate * mean / (1 - beta1**t) / (sqrt(square / (1 - beta2**t)) + epsilon)

    Both begin at zero, for which the divisions by ``1 - beta**t`` correct. With sparse pushes an update of a piece
    counts for all that it holds, touched or not; the means of what was not touched stay as they are.

    Parameters
    ----------
    learning_rate
        A positive number, or a schedule by the number of updates.
    beta1, beta2
        The shares of the means that are kept from step to step, in ``[0, 1)``.
    epsilon
        Added to the root, positive.

    Raises
    ------
    ArgumentError
        A number is out of its range; the message names it.
    """

    name: ClassVar[str] = "adam"
    learning_rate: Rate = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("beta1", self.beta1, "0.9 is usual")
        _check_share("beta2", self.beta2, "0.999 is usual")
        check_number("epsilon", self.epsilon, low=0.0, is_open=True)

    def init(self, values: FloatVector) -> State:
        """Make means of zero."""
        return {"mean": np.zeros_like(values), "square": np.zeros_like(values)}

    def apply(
        self,
        values: FloatVector,
        gradient: FloatVector,
        state: State,
        n_updates: int = 0,
        *,
        rate_factor: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        """Change both means by one gradient, and `values` by what they say."""
        # Both corrections are scalars: they go into the rate and, so that the formula stays what it is, into epsilon
        # (Kingma and Ba, end of section 2, with their epsilon-hat).
        of_mean, of_root = 1.0 - self.beta1 ** (n_updates + 1), math.sqrt(1.0 - self.beta2 ** (n_updates + 1))
        rate = rate_factor * self.rate(n_updates) * of_root / of_mean
        mean, square = _known(state, "mean"), _known(state, "square")
        shares = 1.0 - self.beta1, 1.0 - self.beta2
        chosen = backend or get_backend("numpy")
        chosen.adam_(values, gradient, mean, square, rate, *shares, self.epsilon * of_root)


ADAGRAD_SUMS = "accumulator"
"""The name of Adagrad's sums of squared gradients among a rule's state."""

AnyRule: TypeAlias = SGD | Momentum | Nesterov | Adagrad | RMSProp | Adam

_RULES: Mapping[str, type[AnyRule]] = {rule.name: rule for rule in (SGD, Momentum, Nesterov, Adagrad, RMSProp, Adam)}


def rule_from_config(config: Mapping[str, Any]) -> AnyRule:
    """Rebuild a rule from its `to_config`.

    Raises
    ------
    ArgumentError
        The rule or one of its options is unknown.
    """
    options = {name: rate_from_config(value) for name, value in config.items()}
    name = options.pop("rule", None)
    if name not in _RULES:
        raise ArgumentError(f"rule: one of {', '.join(_RULES)} is needed, got {name!r}")
    try:
        return _RULES[str(name)](**options)
    except TypeError as error:
        raise ArgumentError(f"rule: {name} cannot be made with {sorted(options)}: {error}") from error


def _check_share(name: str, share: float, usual: str) -> None:
    check_number(name, share, low=0.0)
    if share >= 1:
        raise ArgumentError(f"{name}: a number less than 1 is needed, got {share}; {usual}")


def _known(state: State, name: str) -> FloatVector:
    if name not in state:
        raise ArgumentError(f"state: this rule needs {name!r}, got {sorted(state)}; make it with init(values)")
    return state[name]
