"""How fast replicas are, and how long leases should be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_belief.sandblaster.pace import Paces, lease_units

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=150)


def paces_of(**unit_seconds: float | None) -> Paces:
    """Replicas that have finished ten units each, or nothing."""
    paces = Paces()
    for name, seconds in unit_seconds.items():
        paces.join(name)
        if seconds is not None:
            paces.note(name, 10 * seconds, 10)
    return paces


def seconds_of(paces: Paces, name: str) -> float:
    seconds = paces.unit_seconds(name)
    assert seconds is not None
    return seconds


def test_nothing_is_known_at_first() -> None:
    """Then shares are equal."""
    paces = paces_of(a=None, b=None)
    assert paces.typical_seconds is None
    assert paces.unit_seconds("a") is None
    assert paces.share("a") == 0.5


def test_share_follows_speed() -> None:
    """One that is ten times slower has a tenth of another's share."""
    paces = paces_of(quick=1.0, slow=10.0)
    assert paces.share("quick") == pytest.approx(10 / 11)
    assert paces.share("slow") == pytest.approx(1 / 11)


def test_unknown_replica_is_typical() -> None:
    """It has the mean of the known speeds."""
    paces = paces_of(a=1.0, b=2.0, new=None)
    assert paces.unit_seconds("new") == paces.typical_seconds == pytest.approx(1 / 0.75)
    assert paces.share("new") == pytest.approx(1 / 3)


def test_long_lease_tells_more_than_a_short_one() -> None:
    """Seconds and units are added up before they are divided."""
    paces = paces_of(a=1.0)
    paces.note("a", 5.0, 1)
    assert paces.unit_seconds("a") == pytest.approx((0.7 * 10 + 5) / (0.7 * 10 + 1))


def test_change_of_speed_is_learned() -> None:
    """After the leases of an evaluation or so."""
    paces = paces_of(a=1.0)
    for _ in range(8):
        paces.note("a", 10.0, 1)
    assert 7 < seconds_of(paces, "a") < 10


def test_at_least_tells_of_the_slow_only() -> None:
    """That a lease was broken off early says nothing; that it took long already does."""
    paces = paces_of(a=1.0, b=None)
    paces.note_at_least("a", 2.0, 4)
    assert paces.unit_seconds("a") == 1.0
    paces.note_at_least("a", 20.0, 4)
    assert seconds_of(paces, "a") > 1.5
    paces.note_at_least("b", 1e6, 1)
    assert paces.unit_seconds("b") == 1e6
    unknown = paces_of(a=None)
    unknown.note_at_least("a", 20.0, 4)
    assert unknown.unit_seconds("a") is None


def test_replica_that_has_left_counts_no_more() -> None:
    """Neither what it was known for, nor what is told of it later."""
    paces = paces_of(a=1.0, b=3.0)
    paces.leave("b")
    paces.note("b", 1.0, 1)
    paces.leave("b")
    assert paces.share("a") == pytest.approx(1.0)
    paces.leave("a")
    assert paces.typical_seconds is None


def test_clock_that_stands_still_does_no_harm() -> None:
    """A lease that took no time is taken for very short."""
    paces = paces_of(a=None, b=1.0)
    paces.note("a", 0.0, 3)
    assert 0 < seconds_of(paces, "a") < 1e-8


@EXAMPLES
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "leave", "note", "note", "settle"]), st.sampled_from("abcd"), st.floats(1e-3, 1e3)
        ),
        max_size=40,
    )
)
def test_shares_of_all_are_one(events: list[tuple[str, str, float]]) -> None:
    """Whatever comes and goes."""
    paces = paces_of(z=1.0)
    present = {"z"}
    for what, name, seconds in events:
        if what == "join":
            paces.join(name)
            present.add(name)
        elif what == "leave":
            paces.leave(name)
            present.discard(name)
        elif what == "note":
            paces.note(name, seconds, 1)
        else:
            paces.settle()
        assert not present or sum(paces.share(name) for name in present) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("n_left", "share", "unit_seconds", "expected"),
    [
        (64, 0.5, 1.0, 16),
        (64, 0.5, None, 16),
        (64, 0.05, 1.0, 1),
        (1, 1.0, 1.0, 1),
        (0, 0.5, 1.0, 1),
        # Ten milliseconds of work are five units, where half of the share is less; the nearest power of two.
        (64, 0.1, 0.002, 4),
        # But not more than the share, six units, about.
        (64, 0.1, 0.0005, 8),
        # And four milliseconds of work at the least.
        (4, 0.1, 0.001, 4),
        # A third of thirty is ten, whatever rounding says.
        (30, 1 / 3, 1.0, 5),
    ],
)
def test_length_of_a_lease(n_left: int, share: float, unit_seconds: float | None, expected: int) -> None:
    """Half of the fair share, but for very short units."""
    assert lease_units(n_left, share, unit_seconds) == expected


def test_leases_are_few_however_many_units_there_are() -> None:
    """A sixteenth of the share at least, unless less is left; a small share is handed out unit by unit in the end."""
    assert lease_units(3000, 0.1, 1.0, 32_000) == 200
    assert lease_units(500, 0.1, 1.0, 32_000) == 50
    assert lease_units(2, 0.5, 1.0, 40) == 1
