"""From where a run goes on, for everything that may be known when shards were lost."""

from __future__ import annotations

import itertools

import pytest

from dask_belief.recovery import Loss, Source, source_of

S, K, B = Source.SAVED, Source.KEPT, Source.BEGINNING

# has_saved, n_saved, can_save, has_kept: from where.
CASES = [
    # What is saved and at hand goes before all.
    *[
        ((True, n_saved, can_save, has_kept), S)
        for n_saved in (1, 9)
        for can_save in (True, False)
        for has_kept in (True, False)
    ],
    # A run that was resumed, and has saved nothing itself yet.
    *[((True, 0, can_save, has_kept), S) for can_save in (True, False) for has_kept in (True, False)],
    # Saved once, and lost as well.
    ((False, 1, True, True), K),
    ((False, 9, True, True), K),
    ((False, 1, False, True), K),
    # Nowhere to save to.
    ((False, 0, False, True), K),
    # As young as the first save takes: the beginning has the numbers of an unbroken run.
    ((False, 0, True, True), B),
    ((False, 0, True, False), B),
    ((False, 0, False, False), B),
    # Nothing else is left.
    ((False, 1, True, False), B),
    ((False, 9, False, False), B),
    ((False, 9, True, False), B),
    ((False, 1, False, False), B),
    ((False, 9, False, True), K),
]


@pytest.mark.parametrize(("facts", "expected"), CASES)
def test_source(facts: tuple[bool, int, bool, bool], expected: Source) -> None:
    """Saved, else parameters alone where the beginning would lose more than it gives, else the beginning."""
    assert source_of(Loss(*facts)) is expected


def test_all_cases_are_in_the_table() -> None:
    """No save, one, or many; each yes and no."""
    assert {facts for facts, _ in CASES} == set(
        itertools.product((True, False), (0, 1, 9), (True, False), (True, False))
    )
