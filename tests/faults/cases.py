"""The table of the fault suite: what happens to whom, at which point of which method, and how often it was passed then.

How often is drawn from a seed, within bounds that every run reaches; so a row with two seeds is two runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dask_belief.seeds import stream
from tests.faults.injection import Fault

BRIEF_SECONDS, LONG_SECONDS = 0.6, 5.0
"""How long a frozen worker stays so: not long enough to be taken for lost, and longer than that."""

SLOW_SECONDS = 0.05


@dataclass(frozen=True)
class Case:
    """A run and what happens to it.

    Attributes
    ----------
    name
        As the test is called.
    faults
        What is planted.
    n_shards
        Of the run.
    is_validated
        Whether the run has a validation set.
    is_at_a_later_trial
        Whether the first fault is in an evaluation that is not the first of its line search.
    is_checkpointed
        Whether the run is saved on disk, and not in the memory of workers.
    options
        More options of the method.
    """

    name: str
    faults: tuple[Fault, ...]
    n_shards: int = 2
    is_validated: bool = False
    is_at_a_later_trial: bool = False
    is_checkpointed: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        """What happens."""
        return {fault.kind for fault in self.faults}

    @property
    def hits_a_shard(self) -> bool:
        """Whether a shard may be lost."""
        return any(fault.role in ("shard", "any") and fault.kind in ("kill", "freeze") for fault in self.faults)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    fault
        The fault, without the number of times that its point was passed.
    low, high
        Between which that is drawn.
    seeds
        One run for each.
    then
        What happens next.
    options
        See `Case`.
    """

    fault: Fault
    low: int
    high: int
    seeds: Sequence[int] = (0,)
    then: tuple[Fault, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def cases(self) -> Iterable[Case]:
        """The runs of this line."""
        for seed in self.seeds:
            words = [_called(self.fault), self.fault.role, self.fault.point]
            for fault in self.then:
                words += ["then", _called(fault), fault.role, fault.point]
            words += [f"{name}={value}" for name, value in self.options.get("options", {}).items()]
            words += ["later-trial"] if self.options.get("is_at_a_later_trial") else []
            words += ["on-disk"] if self.options.get("is_checkpointed") else []
            number = int(stream(seed, "fault", *words).integers(self.low, self.high))
            # One shard leaves a worker without an actor, or with a keeper and no shard.
            is_idle = any(fault.role in ("replica", "keeper") for fault in (self.fault, *self.then))
            name = "-".join([*words, "after" if self.fault.is_after else "before", f"seed{seed}"])
            given = {"n_shards": 1 if is_idle else 2, **self.options}
            yield Case(name, (replace(self.fault, number=number), *self.then), **given)


def _called(fault: Fault) -> str:
    """What happens, in a test's name."""
    if fault.kind == "freeze":
        return "freeze-briefly" if fault.seconds == BRIEF_SECONDS else "freeze-long"
    return fault.kind


def row(kind: str, role: str, point: str, low: int, high: int, *, seeds: Sequence[int] = (0,), **given: Any) -> Row:
    """A line of the table; what is no attribute of a `Fault` or a `Row` is of the `Case`."""
    of_fault = {name: given.pop(name) for name in ("is_after", "is_elsewhere", "seconds") if name in given}
    then = given.pop("then", ())
    seconds = {"slow": SLOW_SECONDS, "freeze": LONG_SECONDS}.get(kind, 0.0)
    return Row(Fault(kind, role, point, **{"seconds": seconds, **of_fault}), low, high, seeds, then, given)


def then(kind: str, role: str, point: str, **given: Any) -> tuple[Fault, ...]:
    """A second fault, after the first."""
    return (Fault(kind, role, point, is_elsewhere=True, after=0, **given),)


SHARED = [
    # What the replicas' points and the hub's have in common in both methods.
    row("kill", "replica", "hello", 1, 2),
    # Few: a replica that begins late on a loaded machine is given no more.
    row("kill", "replica", "lease", 2, 5),
    row("kill", "replica", "report", 2, 8),
    row("kill", "replica", "report", 2, 8, is_after=True),
    row("kill", "replica", "compute", 3, 30, seeds=(0, 1)),
    row("kill", "replica", "push", 2, 12, seeds=(0, 1)),
    row("kill", "replica", "push", 2, 12, is_after=True),
    row("kill", "shard", "fetch", 1, 2),
    row("kill", "shard", "compute", 3, 30),
    row("kill", "shard", "push", 4, 30, seeds=(0, 1)),
    row("kill", "shard", "push", 4, 30, is_after=True),
    row("kill", "shard", "saving", 2, 6),
    row("kill", "hub", "lease", 4, 20, seeds=(0, 1)),
    row("kill", "hub", "report", 3, 15, is_after=True),
    row("kill", "hub", "push", 4, 20),
    row("kill", "hub", "saving", 2, 6, is_elsewhere=True),
    row("kill", "keeper", "saving", 2, 8, seeds=(0, 1)),
    row("freeze", "replica", "compute", 3, 20),
    row("freeze", "replica", "push", 2, 12, seconds=BRIEF_SECONDS),
    row("freeze", "shard", "push", 4, 30),
    row("freeze", "shard", "push", 4, 30, seconds=BRIEF_SECONDS),
    row("freeze", "hub", "lease", 4, 20),
    row("freeze", "hub", "report", 4, 15, seconds=BRIEF_SECONDS),
    row("freeze", "keeper", "saving", 2, 8),
    row("slow", "replica", "compute", 2, 10),
    row("slow", "shard", "push", 2, 10),
    row("slow", "hub", "lease", 2, 10),
    row("retire", "replica", "compute", 3, 20),
    row("retire", "shard", "push", 4, 30, seeds=(0, 1)),
    row("retire", "shard", "saving", 2, 6),
    row("retire", "hub", "lease", 4, 15),
    row("retire", "keeper", "saving", 2, 6),
    row("add", "any", "push", 4, 20),
    row("add", "any", "compute", 4, 20),
    row("add", "any", "saving", 2, 6),
    row("freeze", "shard", "compute", 4, 20),
    row("freeze", "shard", "saving", 2, 6),
    row("freeze", "hub", "push", 4, 20, is_elsewhere=True),
    row("slow", "replica", "push", 2, 10),
    row("slow", "shard", "fetch", 1, 2),
    row("slow", "shard", "saving", 2, 6),
    row("slow", "hub", "report", 2, 10),
    row("retire", "replica", "push", 3, 12),
    row("retire", "shard", "compute", 4, 20),
    row("retire", "hub", "push", 4, 15, is_elsewhere=True),
    # While a checkpoint is written.
    row("kill", "shard", "push", 10, 30, is_checkpointed=True),
    row("kill", "shard", "saving", 3, 8, is_checkpointed=True),
    row("kill", "shard", "writing", 3, 8, is_checkpointed=True, seeds=(0, 1)),
    row("kill", "shard", "commit", 2, 4, is_checkpointed=True, is_elsewhere=True),
    row("kill", "hub", "writing", 3, 8, is_checkpointed=True, is_elsewhere=True),
    row("kill", "hub", "commit", 2, 4, is_checkpointed=True, is_elsewhere=True),
    row("kill", "replica", "writing", 3, 8, is_checkpointed=True, is_elsewhere=True),
    row("freeze", "shard", "writing", 3, 8, is_checkpointed=True),
    row("freeze", "hub", "commit", 2, 4, is_checkpointed=True, is_elsewhere=True, seconds=BRIEF_SECONDS),
    row("slow", "shard", "writing", 2, 6, is_checkpointed=True),
    row("retire", "shard", "writing", 3, 8, is_checkpointed=True),
    # A second fault while the first is being mended.
    row("kill", "shard", "push", 10, 30, then=then("kill", "hub", "lease")),
    row("kill", "shard", "push", 10, 30, then=then("kill", "any", "fence")),
    row("retire", "shard", "push", 4, 20, then=then("kill", "shard", "fence")),
    row("retire", "shard", "push", 4, 20, then=then("kill", "hub", "fence")),
    row("retire", "shard", "push", 4, 20, then=then("kill", "any", "fence")),
    row("retire", "shard", "push", 4, 20, then=then("freeze", "hub", "fence", seconds=LONG_SECONDS)),
    row("retire", "shard", "push", 4, 20, then=then("freeze", "shard", "fence", seconds=BRIEF_SECONDS)),
    row("retire", "hub", "push", 4, 15, is_elsewhere=True, then=then("kill", "shard", "lease")),
]

SANDBLASTER = [
    *SHARED,
    row("kill", "replica", "fetch", 2, 8, seeds=(0, 1)),
    row("kill", "replica", "reduction", 4, 16, is_elsewhere=True),
    row("kill", "replica", "fetch", 1, 2, is_elsewhere=True, is_at_a_later_trial=True),
    row("kill", "shard", "reduction", 4, 16, seeds=(0, 1)),
    row("kill", "shard", "reduction", 4, 16, is_after=True),
    row("kill", "shard", "push", 1, 2, is_at_a_later_trial=True),
    row("kill", "shard", "evaluation", 1, 2, is_validated=True),
    row("kill", "replica", "evaluation", 1, 2, is_validated=True),
    row("kill", "hub", "reduction", 4, 16, is_elsewhere=True),
    row("kill", "hub", "fetch", 1, 2, is_elsewhere=True, is_at_a_later_trial=True),
    row("freeze", "replica", "fetch", 2, 8),
    row("freeze", "shard", "reduction", 4, 16),
    row("slow", "shard", "reduction", 4, 16),
    row("retire", "shard", "reduction", 4, 16),
    row("add", "any", "reduction", 4, 16),
    row("freeze", "replica", "reduction", 4, 16, is_elsewhere=True),
    row("freeze", "shard", "fetch", 1, 2, is_at_a_later_trial=True),
    row("slow", "shard", "push", 1, 2, is_at_a_later_trial=True),
    row("retire", "shard", "push", 1, 2, is_at_a_later_trial=True),
    row("retire", "replica", "fetch", 1, 2, is_elsewhere=True, is_at_a_later_trial=True),
    row("kill", "shard", "reduction", 8, 16, then=then("kill", "any", "fill")),
    row("kill", "shard", "reduction", 4, 16, options={"l1": 1e-3, "l2": 0.0}),
]

_COPIED = {"shard_copies": 1}

DOWNPOUR = [
    *SHARED,
    row("kill", "replica", "fetch", 1, 2),
    row("freeze", "replica", "fetch", 1, 2),
    row("kill", "shard", "evaluation", 1, 2, is_validated=True),
    row("kill", "replica", "evaluation", 1, 2, is_validated=True),
    row("kill", "hub", "lease", 4, 20, options=_COPIED),
    row("kill", "shard", "push", 4, 30, seeds=(0, 1, 2), options=_COPIED),
    row("kill", "shard", "push", 4, 30, seeds=(0, 1), is_after=True, options=_COPIED),
    row("kill", "shard", "compute", 4, 30, options=_COPIED),
    row("freeze", "shard", "push", 4, 30, options=_COPIED),
    row("retire", "shard", "push", 4, 30, options=_COPIED),
    # Late enough that something was saved to fill the shard with.
    row("kill", "shard", "push", 100, 200, then=then("kill", "any", "fill")),
]

_IN_THE_SHORT_TESTS = {
    "sandblaster": (
        "kill-replica-push-before-seed0",
        "kill-shard-reduction-before-seed0",
        "kill-hub-lease-before-seed0",
        "kill-shard-push-later-trial-before-seed0",
        "freeze-briefly-shard-push-before-seed0",
    ),
    "downpour": (
        "kill-replica-push-before-seed0",
        "kill-shard-push-before-seed0",
        "kill-hub-lease-before-seed0",
        "kill-shard-push-shard_copies=1-after-seed0",
        "retire-shard-push-before-seed0",
    ),
}


def table(method: str) -> list[Any]:
    """The runs of a method as parameters of a test; all but a few are left to the long tests."""
    rows = {"sandblaster": SANDBLASTER, "downpour": DOWNPOUR}[method]
    cases = [case for each in rows for case in each.cases()]
    short = _IN_THE_SHORT_TESTS[method]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names) and set(short) <= set(names)
    return [pytest.param(case, id=case.name, marks=() if case.name in short else (pytest.mark.long,)) for case in cases]
