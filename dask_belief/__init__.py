"""DistBelief made native to Dask: Sandblaster L-BFGS and Downpour SGD on data sets larger than memory."""

from dask_belief.backend import get_backend
from dask_belief.data.dataset import ArrayDataset, Dataset, ZarrDataset
from dask_belief.data.write import write_dataset
from dask_belief.downpour.config import Downpour
from dask_belief.errors import (
    ActorLostError,
    ArgumentError,
    CallTimeoutError,
    ClusterError,
    DaskBeliefError,
    DataError,
    EmptyDataError,
    MissingStoreError,
    NoGPU,
    NonFiniteDataError,
    NonFiniteError,
    NoProgressError,
    NoWorkersError,
    ReplicaError,
    StaleError,
)
from dask_belief.models.layers.dense import Dense
from dask_belief.models.network import Network
from dask_belief.objective import Objective
from dask_belief.optim.rules import SGD, Adagrad, Momentum
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.result import TrainingResult, load_result
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.train import train

__all__ = [
    "SGD",
    "ActorLostError",
    "Adagrad",
    "ArgumentError",
    "ArrayDataset",
    "CallTimeoutError",
    "ClusterError",
    "DaskBeliefError",
    "DataError",
    "Dataset",
    "Dense",
    "Downpour",
    "EmptyDataError",
    "MissingStoreError",
    "Momentum",
    "Network",
    "NoGPU",
    "NoProgressError",
    "NoWorkersError",
    "NonFiniteDataError",
    "NonFiniteError",
    "Objective",
    "ReplicaError",
    "Sandblaster",
    "StaleError",
    "Stop",
    "StopReason",
    "TrainingResult",
    "ZarrDataset",
    "get_backend",
    "load_result",
    "train",
    "write_dataset",
]
