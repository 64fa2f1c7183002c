"""The exceptions of the package: one family, so that ``except DaskBeliefError`` catches all of it.

::

    DaskBeliefError
    ├── ArgumentError (ValueError)        an argument is refused at the door; its name comes first
    │   └── UnknownLayerError             a configuration names a kind of layer that nobody has registered
    ├── DataError (ValueError)            what a store or an array holds cannot be trained on
    │   ├── MissingStoreError             there is no such store, or it lacks an array
    │   ├── EmptyDataError                there are no rows
    │   ├── NonFiniteDataError            inputs or targets hold NaN or infinity
    │   └── CheckpointError               a checkpoint is damaged, incomplete, foreign or of a newer version
    ├── NoGPU (RuntimeError)              CuPy was asked for by name and cannot be used
    ├── NonFiniteError (ArithmeticError)  a loss or a gradient is NaN or infinite; says in which rows
    ├── LayerContractError (AssertionError)  a layer does not keep what is asked of layers; says what it did
    ├── ReplicaError                      the objective raised inside a replica
    ├── ClusterError
    │   ├── NoWorkersError                the cluster has no worker (left) to train on
    │   ├── CallTimeoutError (TimeoutError)  a call to an actor took longer than its limit
    │   ├── ActorLostError                the worker of a shard, a coordinator or a ledger is gone
    │   ├── DoesNotFitError               what a run needs is more than a worker's memory, or its GPU's
    │   └── StaleError                    a message of another run, evaluation or lease was refused
    │       └── OldDirectoryError         a message was sent by an old list of shards; a newer one is there, or will be
    └── NoProgressError                   nothing was finished for longer than the stated limit

A message has three parts: what was asked, what was found, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class DaskBeliefError(Exception):
    """Base of every exception that the package raises on purpose.

    Attributes
    ----------
    kept_parameters
        The best parameters that a run had kept when this ended it, ``(n_parameters,)``; None when no run had begun.
    """

    kept_parameters: NDArray[np.floating] | None = None


class ArgumentError(DaskBeliefError, ValueError):
    """An argument is refused before any work starts; the message begins with its name."""


class UnknownLayerError(ArgumentError):
    """A configuration names a kind of layer that nobody has registered; see `dask_belief.register_layer`."""


class DataError(DaskBeliefError, ValueError):
    """What a store or an array holds cannot be trained on."""


class MissingStoreError(DataError):
    """There is no such store, or it lacks an array that was named."""


class EmptyDataError(DataError):
    """The data set has no rows."""


class NonFiniteDataError(DataError):
    """Inputs or targets hold NaN or infinity."""


class CheckpointError(DataError):
    """A checkpoint is damaged, incomplete, not ours or written by a newer version; the message names the one before."""


class NoGPU(DaskBeliefError, RuntimeError):
    """CuPy was asked for by name and cannot be used on this machine; the message says why."""


class NonFiniteError(DaskBeliefError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the unit and its rows."""


class LayerContractError(DaskBeliefError, AssertionError):
    """A layer does not keep the contract of layers: the message tells what is asked, what was found, where to look."""


class ReplicaError(DaskBeliefError):
    """The objective raised inside a replica; the message carries where, and the original error."""


class ClusterError(DaskBeliefError):
    """The Dask cluster cannot do, or can no longer do, what the run needs."""


class NoWorkersError(ClusterError):
    """The cluster has no worker, or none is left."""


class CallTimeoutError(ClusterError, TimeoutError):
    """A call took longer than its limit; the message names what was called, on which worker."""


class ActorLostError(ClusterError):
    """The worker of a shard, a coordinator or a ledger is gone, and its state with it."""


class DoesNotFitError(ClusterError):
    """What a run needs is more than the memory of a worker, or of its GPU; the message holds the numbers."""


class StaleError(ClusterError):
    """A message of another run, evaluation or lease was refused."""


class OldDirectoryError(StaleError):
    """A message was sent by an old list of shards: a shard has been replaced since, or is about to be."""


class NoProgressError(DaskBeliefError):
    """Nothing was finished for longer than the stated limit."""
