"""The public names of the package: sorted, documented, and nothing beside them."""

from __future__ import annotations

import inspect
import types

import pytest

import dask_belief as db


def test_names_are_sorted_and_unique() -> None:
    """``__all__`` is one sorted list, so that a new name has one place and a diff one line."""
    assert list(db.__all__) == sorted(set(db.__all__))


@pytest.mark.parametrize("name", db.__all__)
def test_name_is_there_and_documented(name: str) -> None:
    """Each public name can be imported and says what it is for; a type alias or a constant needs no docstring."""
    thing = getattr(db, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert (inspect.getdoc(thing) or "").strip(), f"{name} has no docstring"
        assert inspect.getdoc(thing) != inspect.getdoc(type(thing)), f"{name} has its type's docstring only"


@pytest.mark.parametrize("name", [name for name in db.__all__ if inspect.isclass(getattr(db, name))])
def test_docstring_is_not_the_generated_one(name: str) -> None:
    """A dataclass without a docstring gets its signature as one; that does not count as documentation."""
    assert not (getattr(db, name).__doc__ or "").startswith(f"{name}(")


def test_nothing_else_is_public() -> None:
    """What the root holds beside ``__all__`` is private or one of the package's own modules."""
    names = (
        {name for name in vars(db) if not name.startswith("_")}
        - set(db.__all__)
        - {"annotations", "importlib", "TYPE_CHECKING"}
    )
    modules = {name for name in names if isinstance(vars(db)[name], types.ModuleType)}
    assert names - modules == set()
    assert {vars(db)[name].__name__ for name in modules} == {f"{db.__name__}.{name}" for name in modules}


def test_every_public_exception_is_of_the_family() -> None:
    """``except DaskBeliefError`` catches each exception that the root exports."""
    exported = [getattr(db, name) for name in db.__all__]
    exceptions = [thing for thing in exported if inspect.isclass(thing) and issubclass(thing, BaseException)]
    assert db.DaskBeliefError in exceptions
    assert all(issubclass(exception, db.DaskBeliefError) for exception in exceptions)
