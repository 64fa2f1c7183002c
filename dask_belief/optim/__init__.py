"""The mathematics of minimising: update rules, L-BFGS, line search, reasons to stop.

Nothing here knows where a vector lies or who evaluates the objective. Rules work in place on arrays that they are
given; L-BFGS and the line search see scalars only, and say what to evaluate next.
"""
