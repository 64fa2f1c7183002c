"""The activations that a layer may end in.

========== ======================== ======================
name       value                    derivative, by value a
========== ======================== ======================
(None)     z                        1
"relu"     max(z, 0)                1 where a > 0, else 0
"sigmoid"  1 / (1 + exp(-z))        a (1 - a)
"tanh"     tanh(z)                  1 - a ** 2
========== ======================== ======================

Since each derivative follows from the activation's own value, z need not be kept. The arithmetic is the backend's:
`bias_activation_` and `activation_gradient_` of `dask_belief.backend.Backend`.
"""

from __future__ import annotations

from dask_belief.errors import ArgumentError

ACTIVATIONS = ("relu", "sigmoid", "tanh")
"""Their names; None stands for no activation."""


def check_activation(activation: object) -> None:
    """Refuse what is neither None nor the name of an activation; raises `ArgumentError`."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ArgumentError(f"activation: expected None or one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
