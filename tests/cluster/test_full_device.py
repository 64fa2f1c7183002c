"""What is said of a device that ran out of memory, with a device that is pretended."""

from __future__ import annotations

import pytest

from dask_belief.backend import get_backend
from dask_belief.backend.device_memory import DeviceMemory
from dask_belief.backend.numpy import NumpyBackend
from dask_belief.cluster.full_device import lacking_bytes, refused_when_full, told
from dask_belief.errors import DoesNotFitError, ReplicaError

MIB = 2**20
MEMORY = DeviceMemory(total_bytes=1000 * MIB, used_bytes=900 * MIB, free_bytes=60 * MIB)


class Full(Exception):
    """Stands for CuPy's error."""


class Pretended(NumpyBackend):
    """Computes on the host, and knows `Full` for an error of its device."""

    def lacking_bytes(self, error: BaseException) -> int | None:
        return 70 * MIB if isinstance(error, Full) else None

    def device_memory(self) -> DeviceMemory:
        return MEMORY


def raised(error: Exception, cause: BaseException | None = None) -> Exception:
    """An error as it is once it was raised while another was handled, or from it."""
    try:
        try:
            raise Full
        except Full as full:
            if cause is None:
                raise error from full
            raise error from cause
    except Exception as found:
        return found


def test_all_numbers_are_told() -> None:
    """What was needed, what there is and is free, what holds it, and what to do."""
    holdings = {"parameters": 160 * MIB, "cache": 600 * MIB, "accrued": 0}
    assert told("replica-0 on tcp://a:1", 70 * MIB, MEMORY, holdings, "do with less") == (
        "replica-0 on tcp://a:1: the device ran out of memory, 70 MiB more were needed. Of its 1000 MiB, 900 MiB are "
        "arrays of this worker (parameters 160 MiB, cache 600 MiB, all else 140 MiB), 40 MiB are held by others and by "
        "CUDA, 60 MiB are free, perhaps in parts. Use devices with more memory, or do with less."
    )


def test_unknown_numbers_are_said_to_be() -> None:
    """Where a library of CUDA does not say how much it needed, and nothing is held yet."""
    empty = DeviceMemory(total_bytes=100, used_bytes=0, free_bytes=100)
    said = told("here", 0, empty, {}, "do with less", during="the objective raised it, in unit 3.")
    assert "the device does not say how much was needed. Of its 100 bytes, 0 bytes are arrays" in said
    assert "(none)" in said and " It came of this: the objective raised it, in unit 3. Use" in said


def test_others_hold_what_is_neither_used_nor_free() -> None:
    """Never less than nothing, where the numbers are not of one moment."""
    assert MEMORY.other_bytes == 40 * MIB
    assert DeviceMemory(total_bytes=10, used_bytes=8, free_bytes=8).other_bytes == 0


def test_error_of_the_device_is_found_behind_others() -> None:
    """As itself, as a cause, or as what was handled; not behind an error that came of something else."""
    backend = Pretended()
    assert lacking_bytes(backend, Full()) == 70 * MIB
    assert lacking_bytes(backend, raised(ReplicaError("in unit 3"))) == 70 * MIB
    assert lacking_bytes(backend, raised(ValueError("x"), cause=KeyError("y"))) is None
    assert lacking_bytes(backend, ValueError()) is None
    assert lacking_bytes(backend, None) is None
    assert lacking_bytes(get_backend("numpy"), raised(ReplicaError("x"))) is None


def test_block_ends_with_the_numbers() -> None:
    """Where the rows are known, they are told, too; what is held is asked at that moment."""
    holdings: dict[str, int] = {}
    with (
        pytest.raises(
            DoesNotFitError, match=r"^r: .*gradients 5 MiB.* It came of this: bad, in unit 3\. Use"
        ) as caught,
        refused_when_full(Pretended(), "r", lambda: holdings, "do with less"),
    ):
        holdings["gradients"] = 5 * MIB
        raise raised(ReplicaError("bad, in unit 3."))
    assert isinstance(caught.value.__cause__, ReplicaError)


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ReplicaError("x")], ids=repr)
def test_other_errors_pass(error: BaseException) -> None:
    """As they are, on a device and on the host."""
    for backend in (Pretended(), get_backend("numpy")):
        with pytest.raises(type(error)) as caught, refused_when_full(backend, "r", dict, "x"):
            raise error
        assert caught.value is error
