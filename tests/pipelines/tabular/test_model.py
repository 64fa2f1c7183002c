"""The networks have the shapes that are compared."""

from __future__ import annotations

from pipelines.tabular.model import Settings, logistic_regression, network, runs


def test_networks_have_the_shapes_that_are_compared() -> None:
    """The network is scikit-learn's of the same hidden layers, the logistic regression one layer of one unit."""
    settings = Settings(hidden=(8, 4))
    assert network(10, settings).n_parameters == (10 * 8 + 8) + (8 * 4 + 4) + (4 + 1)
    assert logistic_regression(10).n_parameters == 11
    assert [run.method.l2 for run in runs(10, settings)] == [settings.logistic_l2, settings.l2, settings.l2]
