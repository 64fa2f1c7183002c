"""One network over several machines: who has which nodes, what crosses between them, and what each computes.

`plan` says it beforehand, from shapes alone; `cuts` and `cost` are how it is decided, `tables` and `drawing` how it is
shown. `piece` is what a machine does with its part, `partitioned` the order of the parameters, and `own_range` what a
piece sees of them. `executor` is the lead's, `servant` the life of the others, and `team` how they come about.
"""
