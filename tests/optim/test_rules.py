"""The update rules against their plain formulas."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.optim.rules import (
    ADAGRAD_SUMS,
    SGD,
    Adagrad,
    Adam,
    Momentum,
    Nesterov,
    RMSProp,
    Rule,
    rule_from_config,
)
from dask_belief.optim.schedules import Cosine, InverseTimeDecay, StepDecay, Warmup

RULES = [
    SGD(0.1),
    Momentum(0.05, momentum=0.8),
    Nesterov(0.05, momentum=0.8),
    Adagrad(0.2, initial_accumulator=0.3, epsilon=1e-3),
    Adagrad(0.2, initial_accumulator=0.0),
    RMSProp(0.02, decay=0.95, epsilon=1e-3),
    Adam(0.03, beta1=0.8, beta2=0.99, epsilon=1e-3),
]
IDS = ["sgd", "momentum", "nesterov", "adagrad", "paper's adagrad", "rmsprop", "adam"]
VECTORS = {
    "sgd": [],
    "momentum": ["velocity"],
    "nesterov": ["velocity"],
    "adagrad": ["accumulator"],
    "rmsprop": ["square"],
    "adam": ["mean", "square"],
}
each_rule = pytest.mark.parametrize("rule", RULES, ids=IDS)


def plain_formula(rule, values, gradients, rates, n_updates=0):
    """The rule as its paper writes it, in float64, with fresh arrays in each step; gives values and state."""
    state = {name: np.zeros_like(values) for name in VECTORS[rule.name]}
    if isinstance(rule, Adagrad):
        state["accumulator"] += rule.initial_accumulator
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=n_updates + 1):
        if isinstance(rule, SGD):
            step = g
        elif isinstance(rule, Momentum):
            state["velocity"] = rule.momentum * state["velocity"] + g
            step = state["velocity"]
        elif isinstance(rule, Nesterov):
            state["velocity"] = rule.momentum * state["velocity"] + g
            step = g + rule.momentum * state["velocity"]
        elif isinstance(rule, Adagrad):
            state["accumulator"] = state["accumulator"] + g**2
            step = g / (np.sqrt(state["accumulator"]) + rule.epsilon)
        elif isinstance(rule, RMSProp):
            state["square"] = rule.decay * state["square"] + (1 - rule.decay) * g**2
            step = g / (np.sqrt(state["square"]) + rule.epsilon)
        else:
            state["mean"] = rule.beta1 * state["mean"] + (1 - rule.beta1) * g
            state["square"] = rule.beta2 * state["square"] + (1 - rule.beta2) * g**2
            mean, square = state["mean"] / (1 - rule.beta1**t), state["square"] / (1 - rule.beta2**t)
            step = mean / (np.sqrt(square) + rule.epsilon)
        values = values - rate * step
    return values, state


def draw(generator, n, dtype, n_gradients):
    """A vector and gradients of very different sizes, none so small that its square underflows."""
    values, *gradients = generator.standard_normal((1 + n_gradients, n)) * 10.0 ** generator.uniform(-3, 3, n)
    return values.astype(dtype), [gradient.astype(dtype) for gradient in gradients]


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * float(np.max(np.abs(expected))))


@pytest.mark.parametrize("n", [1, 7, 70_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("backend", [None, get_backend("numpy")], ids=["default", "numpy"])
@each_rule
def test_steps_follow_the_formula_in_place(rule, backend, dtype, tolerance, n):
    """Six steps, the last at a fifth of the rate, give the formula's values and state in the arrays given (seed 31)."""
    values, gradients = draw(np.random.default_rng(31), n, dtype, 6)
    factors = [1.0] * 5 + [0.2]
    expected, expected_state = plain_formula(
        rule,
        values.astype(np.float64),
        [gradient.astype(np.float64) for gradient in gradients],
        [rule.learning_rate * factor for factor in factors],
    )
    state = rule.init(values)
    arrays = {"values": values, **state}
    kept = [gradient.copy() for gradient in gradients]
    for n_updates, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        rule.apply(values, gradient, state, n_updates, rate_factor=factor, backend=backend)
    close(values, expected, tolerance)
    assert sorted(state) == VECTORS[rule.name]
    for name, vector in expected_state.items():
        assert state[name] is arrays[name] and state[name].dtype == dtype
        close(state[name], vector, 3 * tolerance)
    assert all(np.array_equal(gradient, before) for gradient, before in zip(gradients, kept, strict=True))


@each_rule
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300), n_steps=st.integers(1, 12), n_updates=st.integers(0, 9999)
)
def test_steps_follow_the_formula_from_any_count(rule, seed, n, n_steps, n_updates):
    """Any number of steps, from any number of updates before, with a state of zero there, in float64."""
    values, gradients = draw(np.random.default_rng(seed), n, np.float64, n_steps)
    expected, _ = plain_formula(rule, values, gradients, [rule.learning_rate] * n_steps, n_updates)
    state = rule.init(values)
    for step, gradient in enumerate(gradients):
        rule.apply(values, gradient, state, n_updates + step)
    close(values, expected, 1e-11)


@each_rule
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 140_000), max_size=4))
def test_a_vector_in_pieces_is_updated_as_the_whole_to_the_bit(rule, seed, cuts):
    """Shards and pieces, which are views of larger vectors, give the bits of the whole, wherever they are cut."""
    generator = np.random.default_rng(seed)
    n, first = 140_000, int(generator.integers(0, 16))
    whole, gradients = draw(generator, n, np.float32, 2)
    # Not where a fresh array would begin, so that no loop of NumPy starts at the same alignment.
    larger = np.full(n + 32, 7.0, np.float32)
    parts = larger[first : first + n]
    parts[:] = whole
    state, state_of_parts = rule.init(whole), rule.init(parts)
    borders = [0, *sorted(cuts), n]
    for n_updates, gradient in enumerate(gradients):
        rule.apply(whole, gradient, state, n_updates)
        for piece in (slice(start, stop) for start, stop in itertools.pairwise(borders)):
            own = {name: vector[piece] for name, vector in state_of_parts.items()}
            rule.apply(parts[piece], gradient[piece], own, n_updates)
    assert np.array_equal(parts, whole)
    assert all(np.array_equal(state_of_parts[name], vector) for name, vector in state.items())
    assert (larger[:first] == 7).all() and (larger[first + n :] == 7).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_rule
def test_no_memory_of_the_length_of_the_vector_is_taken(rule, dtype):
    """Once a thread has its scratch, updates of a million parameters take a few kilobytes at most."""
    values = np.ones(1_000_000, dtype)
    gradient, state = np.full_like(values, 0.5), rule.init(values)
    rule.apply(values, gradient, state)
    tracemalloc.start()
    try:
        for n_updates in range(1, 4):
            rule.apply(values, gradient, state, n_updates)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * 1024


@each_rule
def test_the_rate_of_a_step_is_the_schedule_at_its_count(rule):
    """With a schedule, `rate` and `apply` follow the count that they are told; the factor comes on top (seed 33)."""
    schedule = Warmup(3, then=StepDecay(0.2, factor=0.5, every=4))
    scheduled = rule_from_config(rule.to_config() | {"learning_rate": schedule.to_config()})
    values, gradients = draw(np.random.default_rng(33), 50, np.float64, 9)
    rates = [schedule(n) for n in range(9)]
    assert [scheduled.rate(n) for n in range(9)] == rates
    expected, _ = plain_formula(rule, values, gradients, [0.25 * rate for rate in rates])
    state = scheduled.init(values)
    for n_updates, gradient in enumerate(gradients):
        scheduled.apply(values, gradient, state, n_updates, rate_factor=0.25)
    close(values, expected, 1e-13)


@each_rule
def test_a_rate_that_stays_is_the_same_at_every_count(rule):
    """A number is the rate of the first update and of the millionth."""
    assert rule.rate(0) == rule.rate(10**6) == rule.learning_rate


@each_rule
def test_a_zero_gradient_moves_nothing_at_first(rule):
    """Where state and gradient are zero epsilon keeps 0/0 away; with the paper's start of Adagrad, too."""
    values = np.ones(5, np.float32)
    rule.apply(values, np.zeros(5, np.float32), rule.init(values))
    assert np.array_equal(values, np.ones(5))


def test_adagrad_is_the_papers_formula():
    """Without a start the rate of each parameter is gamma over the root of the sum of its squares (seed 34)."""
    gamma, rule = 0.1, Adagrad(0.1, initial_accumulator=0.0)
    gradients = np.random.default_rng(34).standard_normal((6, 40))
    values = np.zeros(40)
    state = rule.init(values)
    for n_updates, gradient in enumerate(gradients):
        rule.apply(values, gradient, state, n_updates)
    rates = gamma / np.sqrt(np.cumsum(gradients**2, axis=0))
    close(values, -(rates * gradients).sum(axis=0), 1e-6)
    close(state[ADAGRAD_SUMS], (gradients**2).sum(axis=0), 1e-14)


def test_the_first_step_of_adam_is_the_learning_rate():
    """Its corrections make the first step one of the rate by the gradient's sign, however small the gradient."""
    values = np.zeros(3, np.float32)
    rule = Adam(0.01)
    rule.apply(values, np.array([1e-3, -5.0, 1e3], np.float32), rule.init(values))
    np.testing.assert_allclose(values, [-0.01, 0.01, -0.01], rtol=2e-5)


def test_adam_at_a_late_count_needs_no_correction():
    """After a million updates the factors are one, and nothing overflows (seed 35)."""
    rule = Adam(0.01, epsilon=0.1)
    gradient = np.random.default_rng(35).standard_normal(20)
    values = np.zeros(20)
    rule.apply(values, gradient, rule.init(values), 10**6)
    close(values, -0.01 * 0.1 * gradient / (np.sqrt(0.001) * np.abs(gradient) + 0.1), 1e-12)


@each_rule
def test_rules_go_through_json_and_pickle(rule):
    """A rule comes back equal from its JSON and from a message, with a number and with a schedule as its rate."""
    for rate in (rule.learning_rate, Warmup(10, then=Cosine(0.1, n_updates=100)), InverseTimeDecay(0.5, half_after=7)):
        given_rule = rule_from_config(rule.to_config() | {"learning_rate": rate})
        assert given_rule.learning_rate == rate and isinstance(given_rule, Rule)
        assert rule_from_config(json.loads(json.dumps(given_rule.to_config(), allow_nan=False))) == given_rule
        assert pickle.loads(pickle.dumps(given_rule)) == given_rule


@pytest.mark.parametrize("kind", [SGD, Momentum, Nesterov, Adagrad, RMSProp, Adam])
@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf, "0.1", True, None, Cosine])
def test_a_bad_rate_is_refused(kind, rate):
    """What is neither a positive number nor a schedule is named in the error; so is the class of a schedule."""
    with pytest.raises(ArgumentError, match=r"^learning_rate:"):
        kind(rate)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(0.1, momentum=1.0), "momentum"),
        (lambda: Momentum(0.1, momentum=-0.1), "momentum"),
        (lambda: Nesterov(0.1, momentum=1.5), "momentum"),
        (lambda: Adagrad(0.1, initial_accumulator=-1.0), "initial_accumulator"),
        (lambda: Adagrad(0.1, epsilon=0.0), "epsilon"),
        (lambda: RMSProp(0.1, decay=1.0), "decay"),
        (lambda: RMSProp(0.1, decay=math.nan), "decay"),
        (lambda: RMSProp(0.1, epsilon=-1e-8), "epsilon"),
        (lambda: Adam(0.1, beta1=1.0), "beta1"),
        (lambda: Adam(0.1, beta2=-0.5), "beta2"),
        (lambda: Adam(0.1, epsilon=0.0), "epsilon"),
        (lambda: rule_from_config({"rule": "lion", "learning_rate": 0.1}), "rule: .*'lion'"),
        (lambda: rule_from_config({"learning_rate": 0.1}), "rule"),
        (lambda: rule_from_config({"rule": "sgd", "learning_rate": 0.1, "momentum": 0.9}), "rule: sgd"),
        (lambda: rule_from_config({"rule": "sgd"}), "rule: sgd"),
        (lambda: rule_from_config({"rule": "sgd", "learning_rate": {"schedule": "sine"}}), "schedule: .*'sine'"),
    ],
)
def test_bad_rules_are_refused_by_name(make, message):
    """Each option out of its range, and each unknown rule, schedule or option, is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("rule", RULES[1:], ids=IDS[1:])
def test_a_state_of_another_rule_is_refused(rule):
    """A state that lacks one of the rule's vectors is an error that says how to make it, and nothing has moved."""
    values = np.ones(3, np.float32)
    for name in VECTORS[rule.name]:
        state = {other: vector for other, vector in rule.init(values).items() if other != name}
        before = {other: vector.copy() for other, vector in state.items()}
        with pytest.raises(ArgumentError, match=r"^state: .*init\(values\)"):
            rule.apply(values, values.copy(), state)
        assert np.array_equal(values, np.ones(3))
        assert all(np.array_equal(state[other], vector) for other, vector in before.items())
