"""The update rules against their plain formulas."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from dask_belief.backend import get_backend
from dask_belief.errors import ArgumentError
from dask_belief.optim.rules import SGD, Adagrad, Momentum, rule_from_config

RULES = [SGD(0.1), Momentum(0.05, momentum=0.8), Adagrad(0.2, initial_accumulator=0.3, epsilon=1e-3)]


def plain_formula(rule, values, gradients, rates):
    """The rule written out in float64, with fresh arrays in each step."""
    velocity = np.zeros_like(values)
    accumulator = np.full_like(values, getattr(rule, "initial_accumulator", 0.0))
    for gradient, rate in zip(gradients, rates, strict=True):
        if isinstance(rule, SGD):
            values = values - rate * gradient
        elif isinstance(rule, Momentum):
            velocity = rule.momentum * velocity + gradient
            values = values - rate * velocity
        else:
            accumulator = accumulator + gradient**2
            values = values - rate * gradient / (np.sqrt(accumulator) + rule.epsilon)
    return values, {"momentum": {"velocity": velocity}, "adagrad": {"accumulator": accumulator}}.get(rule.name, {})


@pytest.mark.parametrize("n", [1, 7, 70_000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("backend", [None, get_backend("numpy")], ids=["default", "numpy"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_steps_follow_the_formula_in_place(rule, backend, dtype, tolerance, n):
    """Five steps, one at a rate of its own, give the formula's values and state in the arrays given (seed 31)."""
    generator = np.random.default_rng(31)
    values = generator.standard_normal(n).astype(dtype)
    gradients = [generator.standard_normal(n).astype(dtype) for _ in range(5)]
    rates = [rule.learning_rate] * 4 + [0.01]
    expected, expected_state = plain_formula(
        rule, values.astype(np.float64), [g.astype(np.float64) for g in gradients], rates
    )
    state = rule.init(values)
    arrays = {"values": values, **state}
    kept = [gradient.copy() for gradient in gradients]
    for gradient in gradients[:4]:
        rule.apply(values, gradient, state, backend=backend)
    rule.apply(values, gradients[4], state, 0.01, backend)
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
    assert state.keys() == expected_state.keys()
    for name, vector in expected_state.items():
        assert state[name] is arrays[name] and state[name].dtype == dtype
        np.testing.assert_allclose(state[name], vector, rtol=5 * tolerance, atol=5 * tolerance)
    assert all(np.array_equal(gradient, before) for gradient, before in zip(gradients, kept, strict=True))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_slices_of_a_vector_are_updated_as_the_whole(rule):
    """A rule works entry by entry, so shards of a vector give the bits of the whole vector (seed 32)."""
    generator = np.random.default_rng(32)
    values, gradient = generator.standard_normal((2, 1000)).astype(np.float32)
    whole, parts = values.copy(), values.copy()
    whole_state, left_state, right_state = rule.init(whole), rule.init(parts[:333]), rule.init(parts[333:])
    for _ in range(3):
        rule.apply(whole, gradient, whole_state)
        rule.apply(parts[:333], gradient[:333], left_state)
        rule.apply(parts[333:], gradient[333:], right_state)
    assert np.array_equal(whole, parts)


def test_a_zero_gradient_moves_nothing_under_adagrad_without_a_start():
    """With an accumulator of zero, epsilon keeps 0/0 away."""
    rule = Adagrad(0.1, initial_accumulator=0.0)
    values = np.ones(5, np.float32)
    rule.apply(values, np.zeros(5, np.float32), rule.init(values))
    assert np.array_equal(values, np.ones(5))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rules_go_through_json_and_pickle(rule):
    """A rule comes back equal from its JSON and from a message."""
    assert rule_from_config(json.loads(json.dumps(rule.to_config()))) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0.0), "learning_rate"),
        (lambda: SGD(-0.1), "learning_rate"),
        (lambda: SGD(math.nan), "learning_rate"),
        (lambda: Momentum(-1.0), "learning_rate"),
        (lambda: Momentum(0.1, momentum=1.0), "momentum"),
        (lambda: Momentum(0.1, momentum=-0.1), "momentum"),
        (lambda: Adagrad(math.inf), "learning_rate"),
        (lambda: Adagrad(0.1, initial_accumulator=-1.0), "initial_accumulator"),
        (lambda: Adagrad(0.1, epsilon=0.0), "epsilon"),
        (lambda: rule_from_config({"rule": "adam", "learning_rate": 0.1}), "rule: .*'adam'"),
        (lambda: rule_from_config({"learning_rate": 0.1}), "rule"),
        (lambda: rule_from_config({"rule": "sgd", "learning_rate": 0.1, "momentum": 0.9}), "rule: sgd"),
        (lambda: rule_from_config({"rule": "sgd"}), "rule: sgd"),
    ],
)
def test_bad_rules_are_refused_by_name(make, message):
    """Each option out of its range, and each unknown rule or option, is named in the error."""
    with pytest.raises(ArgumentError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda rule: rule.name)
def test_a_state_of_another_rule_is_refused(rule):
    """A state that lacks the rule's vector is an error that says how to make one."""
    values = np.ones(3, np.float32)
    with pytest.raises(ArgumentError, match=r"^state: .*init\(values\)"):
        rule.apply(values, values.copy(), {})
    assert np.array_equal(values, np.ones(3))
