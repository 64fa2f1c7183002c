"""The parameters of an evaluation, fetched once a worker and shared by its replicas."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.limits import GRACE_SECONDS, limits
from dask_belief.errors import CallTimeoutError
from dask_belief.parameter_server.client import ParameterServer

Vector = NDArray[np.floating]


class SharedFetch:
    """Holds the parameters of the last evaluation that a replica of the worker asked for; safe from several threads.

    One vector does for one replica. Several take two in turns, so that one which still computes the evaluation before
    is not disturbed. One that is two evaluations behind reads what it should not: its lease was done by others long
    ago, and the shards refuse its sum.

    Parameters
    ----------
    server, caller
        The shards, and the way to them.
    backend
        Gives host memory from which the device is filled.
    """

    def __init__(self, server: ParameterServer, caller: Caller, backend: Backend) -> None:
        self._server = server
        self._caller = caller
        self._backend = backend
        self._lock = threading.Lock()
        self._evaluation = -1
        self._vectors: list[Vector] = []
        self.n_replicas = 1

    def fetch(self, evaluation: int) -> tuple[Vector, int]:
        """Give the parameters of an evaluation, read-only, and how many bytes travelled for this call.

        Raises
        ------
        StaleError
            When the evaluation is not the one under way.
        CallTimeoutError
            When a shard, or another replica that fetches the same, takes too long.
        """
        # The other's fetch has a limit of its own.
        limit_seconds = limits().call_seconds + 2 * GRACE_SECONDS
        if not self._lock.acquire(timeout=limit_seconds):
            raise CallTimeoutError(
                f"another replica of {self._caller.own_address or 'this process'} did not fetch the parameters within "
                f"{limit_seconds:g} seconds. A shard, or that worker, may be overloaded: look at them in the dashboard."
            )
        try:
            n_bytes = 0
            if evaluation != self._evaluation:
                n_bytes = self._receive(evaluation)
            shared = self._vectors[-1].view()
            shared.flags.writeable = False
            return shared, n_bytes
        finally:
            self._lock.release()

    def _receive(self, evaluation: int) -> int:
        directory = self._server.directory
        if len(self._vectors) < min(2, self.n_replicas):
            self._vectors.append(self._backend.host_empty((directory.n_parameters,), directory.dtype))
        else:
            self._vectors.reverse()
        # Until all of it has arrived it is nobody's.
        self._evaluation = -1
        self._caller.run(self._server.fetch(evaluation, self._vectors[-1]))
        self._evaluation = evaluation
        return self._vectors[-1].nbytes


_of_workers: weakref.WeakValueDictionary[Hashable, SharedFetch] = weakref.WeakValueDictionary()
_registering = threading.Lock()


def shared_fetch(server: ParameterServer, caller: Caller, backend: Backend) -> SharedFetch:
    """Count a replica in to what its worker shares; it lasts as long as a replica holds it."""
    if caller.own_address is None:
        return SharedFetch(server, caller, backend)
    key = (caller.own_address, server.directory, backend.name)
    with _registering:
        found = _of_workers.get(key)
        if found is None:
            found = _of_workers[key] = SharedFetch(server, caller, backend)
        else:
            found.n_replicas += 1
    return found
