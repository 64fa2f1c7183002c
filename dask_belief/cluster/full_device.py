"""A device that runs out of memory: what was needed, what it has, and what a replica holds of it, in one error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from dask_belief.backend import Backend
from dask_belief.backend.device_memory import DeviceMemory
from dask_belief.errors import DaskBeliefError, DoesNotFitError

_MIB = 2**20

Holdings = Callable[[], Mapping[str, int]]
"""Gives the bytes that something has on its device, by what they are for."""


def lacking_bytes(backend: Backend, error: BaseException | None) -> int | None:
    """Tell how much the device was asked for and could not give, if `error` came of that; None for another error.

    Whatever was raised from such an error, or while it was handled, came of it.
    """
    while error is not None:
        n_bytes = backend.lacking_bytes(error)
        if n_bytes is not None:
            return n_bytes
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def refused_when_full(backend: Backend, where: str, holdings: Holdings, advice: str) -> Iterator[None]:
    """Turn what comes of a device without memory into an error that says what holds it.

    Parameters
    ----------
    backend
        Whose device it is.
    where
        What runs out of it, and on which worker.
    holdings
        Asked when that happens.
    advice
        How less is needed, as the rest of a sentence.

    Raises
    ------
    DoesNotFitError
        With the numbers.
    """
    try:
        yield
    except Exception as error:
        needed = lacking_bytes(backend, error)
        memory = None if needed is None else backend.device_memory()
        if needed is None or memory is None:
            raise
        # What is ours says where in the data it was; what is CuPy's, nothing more than the number.
        during = str(error) if isinstance(error, DaskBeliefError) else None
        raise DoesNotFitError(told(where, needed, memory, holdings(), advice, during)) from error


def told(
    where: str, needed: int, memory: DeviceMemory, holdings: Mapping[str, int], advice: str, during: str | None = None
) -> str:
    """Say in words what was needed, what there is, and what holds it."""
    of_replica = {**holdings, "all else": max(0, memory.used_bytes - sum(holdings.values()))}
    held = ", ".join(f"{name} {_mib(n_bytes)}" for name, n_bytes in of_replica.items() if n_bytes)
    asked = f"{_mib(needed)} more were needed" if needed else "the device does not say how much was needed"
    while_at = "" if during is None else f" It came of this: {during.rstrip('.')}."
    return (
        f"{where}: the device ran out of memory, {asked}. Of its {_mib(memory.total_bytes)}, "
        f"{_mib(memory.used_bytes)} are arrays of this worker ({held or 'none'}), {_mib(memory.other_bytes)} are held "
        f"by others and by CUDA, {_mib(memory.free_bytes)} are free, perhaps in parts.{while_at} Use devices with more "
        f"memory, or {advice}."
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / _MIB:.4g} MiB" if n_bytes >= _MIB / 10 else f"{n_bytes} bytes"
