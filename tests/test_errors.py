"""The exception family: one root, the built-in kinds that callers expect, and the tree that the docstring draws."""

from __future__ import annotations

import inspect
import re

import pytest

from dask_belief import errors

FAMILY = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, BaseException)}


@pytest.mark.parametrize("cls", FAMILY.values(), ids=FAMILY)
def test_one_root_catches_all(cls: type[Exception]) -> None:
    """``except DaskBeliefError`` catches every exception of the package, with its message."""
    with pytest.raises(errors.DaskBeliefError, match="what to do"):
        raise cls("what to do")


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ArgumentError, ValueError),
        (errors.DataError, ValueError),
        (errors.NoGPU, RuntimeError),
        (errors.NonFiniteError, ArithmeticError),
        (errors.CallTimeoutError, TimeoutError),
    ],
)
def test_builtin_kinds(cls: type[Exception], builtin: type[Exception]) -> None:
    """Who does not know the package catches its errors as Python's own kinds."""
    assert issubclass(cls, builtin)


def test_docstring_draws_the_tree() -> None:
    """Each exception stands in the module's drawing, below the class that it inherits from."""
    drawn: dict[str, str] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^    ([│├└─ ]*)([A-Z]\w+)", line):
            depth = len(match[1]) // 4
            del ancestors[depth:]
            drawn[match[2]] = ancestors[-1] if ancestors else ""
            ancestors.append(match[2])
    expected = {
        name: next((b.__name__ for b in cls.__bases__ if b in FAMILY.values()), "") for name, cls in FAMILY.items()
    }
    assert drawn == expected
