"""The mathematics of minimising: update rules, directions of batch methods, searches for a step, reasons to stop.

Nothing here knows where a vector lies or who evaluates the objective. Update rules work in place on arrays that they
are given; direction rules (`direction`: L-BFGS, conjugate gradients, gradient descent) and searches see scalars only,
and say what to evaluate next.
"""
