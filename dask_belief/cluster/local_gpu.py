"""A cluster on one machine with one worker process for each of its GPUs.

Each process is shown its own GPU and no other, so that whatever runs there takes that one as device 0: a replica, and
also a library of an objective's own that would fill the memory of every device it sees. What travels between workers is
host memory, so no worker has a use for another's device; where one has, ``dask_cuda.LocalCUDACluster`` shows each
worker all of them, its own first.

The process that makes the cluster calls no CUDA: a second process counts the devices, and ends.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from distributed import LocalCluster
from distributed.worker_memory import parse_memory_limit

from dask_belief.backend import ENVIRONMENT_VARIABLE
from dask_belief.cluster.limits import limits
from dask_belief.errors import ArgumentError, NoGPU

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Names the devices that CUDA shows to a process, by number or by identity; there they are counted from 0."""

# The last line is the answer: what is imported may talk.
_COUNT = "import json; from dask_belief.backend import cupy_devices; print('\\n' + json.dumps(cupy_devices()))"


class LocalGPUCluster(LocalCluster):
    """A Dask cluster on this machine: for each GPU a worker process with one thread, which sees that GPU alone.

    Workers compute with CuPy; where it cannot be used, the run ends with a `NoGPU` that says why. The cluster listens
    on loopback. A worker that dies is started again on the same device.

    Parameters
    ----------
    devices
        The numbers of the devices to use, as CUDA counts them in this process; None for all.
    **options
        Of `distributed.LocalCluster`, such as ``memory_limit`` and ``dashboard_address``, but for those that say how
        many workers and threads there are. ``env`` is for all workers.

    Raises
    ------
    NoGPU
        When there is no device, or CuPy cannot be used; says why.
    ArgumentError
        When `devices` names one that is not there, or one twice, or an option is not to be chosen.

    Examples
    --------
    >>> with db.LocalGPUCluster() as cluster, Client(cluster) as client:     # doctest: +SKIP
    ...     result = db.train(network, "train.zarr", db.Sandblaster(), client=client)
    """

    def __init__(self, devices: Sequence[int] | None = None, **options: Any) -> None:
        for fixed in ("n_workers", "threads_per_worker", "processes", "worker_class"):
            if fixed in options:
                raise ArgumentError(
                    f"{fixed}: is not to be chosen, there is one process with one thread for each device. Choose them "
                    "with devices=, or make a LocalCluster yourself."
                )
        visible = visible_devices(os.environ.get(VISIBLE), count_devices())
        chosen = check_devices(devices, len(visible))
        self._visible = {device: visible[device] for device in chosen}
        options.setdefault("dashboard_address", "127.0.0.1:0")
        options.setdefault("memory_limit", parse_memory_limit("auto", 1, len(chosen), logger=logger))
        # What may be chosen for all workers; which device is theirs may not.
        options["env"] = {ENVIRONMENT_VARIABLE: "cupy", **(options.get("env") or {})}
        super().__init__(n_workers=0, threads_per_worker=1, processes=True, **options)  # type: ignore[no-untyped-call]
        while len(self.worker_spec) < len(chosen):
            self.worker_spec.update(self.new_worker_spec())
        if not self.asynchronous:
            self.sync(self._correct_state)  # type: ignore[no-untyped-call]

    @property
    def devices(self) -> tuple[int, ...]:
        """The numbers of the devices, as CUDA counts them in this process; each is also its worker's name."""
        return tuple(self._visible)

    def new_worker_spec(self) -> dict[int, dict[str, Any]]:
        """Give name and specification of a worker for the first device that has none; called by `scale`."""
        free = [device for device in self.devices if device not in self.worker_spec]
        if not free:
            raise ArgumentError(
                f"scale: there is one worker for each of {len(self.devices)} devices, and all of them have one. Make "
                "the cluster with more devices."
            )
        spec = copy.deepcopy(self.new_spec)
        spec["options"]["env"][VISIBLE] = self._visible[free[0]]
        return {free[0]: spec}


def count_devices() -> int:
    """Count the devices that this process would see, in a process of its own.

    Raises
    ------
    NoGPU
        When there is none, or CuPy cannot be used; says why.
    """
    # Where the modules of this process are found, those of the other are.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    limit_seconds = limits().start_seconds
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COUNT], env=environment, capture_output=True, text=True, timeout=limit_seconds
        )
    except subprocess.TimeoutExpired as error:
        raise NoGPU(
            f"devices: CUDA did not say within {limit_seconds:g} seconds how many there are; look whether "
            "nvidia-smi answers"
        ) from error
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise NoGPU(f"devices: they could not be counted: {said}")
    n_devices, reason = json.loads(done.stdout.splitlines()[-1])
    if not n_devices:
        raise NoGPU(f"devices: a worker for each GPU was asked for: {reason}; a LocalCluster computes on the host")
    return int(n_devices)


def visible_devices(listed: str | None, n_devices: int) -> tuple[str, ...]:
    """Name each device so that another process can be shown it alone.

    Parameters
    ----------
    listed
        What ``CUDA_VISIBLE_DEVICES`` holds in this process: numbers, or identities such as ``GPU-8932f937``; None where
        it is not set.
    n_devices
        How many devices this process sees: CUDA ends the list before the first name that it does not know.
    """
    if listed is None:
        return tuple(str(number) for number in range(n_devices))
    return tuple(name.strip() for name in listed.split(","))[:n_devices]


def check_devices(devices: Sequence[int] | None, n_devices: int) -> tuple[int, ...]:
    """Give the numbers of the devices to use; raises `ArgumentError` for what is not there, or there twice."""
    if devices is None:
        return tuple(range(n_devices))
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise ArgumentError(f"devices: expected numbers of devices, such as [0, 1], or None for all, got {devices!r}.")
    if not devices:
        raise ArgumentError("devices: one or more are needed, got none; leave devices= out for all.")
    for device in devices:
        if isinstance(device, bool) or not isinstance(device, int) or not 0 <= device < n_devices:
            raise ArgumentError(
                f"devices: expected numbers from 0 to {n_devices - 1}, as CUDA counts them in this process, got "
                f"{device!r}."
            )
    if len(set(devices)) < len(devices):
        raise ArgumentError(f"devices: each is for one worker, got {list(devices)}; name each once.")
    return tuple(devices)
