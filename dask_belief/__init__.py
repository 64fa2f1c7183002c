"""DistBelief made native to Dask: Sandblaster L-BFGS and Downpour SGD on data sets larger than memory.

Names are imported when they are first used: so the numeric core (``backend``, ``models``, ``optim``) can be used on a
machine that has NumPy alone, and importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask_belief import testing as testing
    from dask_belief.backend import get_backend as get_backend
    from dask_belief.checkpoint import Checkpoint as Checkpoint
    from dask_belief.cluster.detached import DetachedRun as DetachedRun
    from dask_belief.cluster.detached import attach as attach
    from dask_belief.cluster.limits import Limits as Limits
    from dask_belief.cluster.local_gpu import LocalGPUCluster as LocalGPUCluster
    from dask_belief.cluster.retiring import retire_workers as retire_workers
    from dask_belief.data.dataset import ArrayDataset as ArrayDataset
    from dask_belief.data.dataset import Dataset as Dataset
    from dask_belief.data.write import write_dataset as write_dataset
    from dask_belief.data.zarr_dataset import ZarrDataset as ZarrDataset
    from dask_belief.downpour.config import Downpour as Downpour
    from dask_belief.downpour.replay import replay as replay
    from dask_belief.errors import ActorLostError as ActorLostError
    from dask_belief.errors import ArgumentError as ArgumentError
    from dask_belief.errors import CallTimeoutError as CallTimeoutError
    from dask_belief.errors import CheckpointError as CheckpointError
    from dask_belief.errors import ClusterError as ClusterError
    from dask_belief.errors import DaskBeliefError as DaskBeliefError
    from dask_belief.errors import DataError as DataError
    from dask_belief.errors import DoesNotFitError as DoesNotFitError
    from dask_belief.errors import EmptyDataError as EmptyDataError
    from dask_belief.errors import LayerContractError as LayerContractError
    from dask_belief.errors import MissingStoreError as MissingStoreError
    from dask_belief.errors import NoGPU as NoGPU
    from dask_belief.errors import NonFiniteDataError as NonFiniteDataError
    from dask_belief.errors import NonFiniteError as NonFiniteError
    from dask_belief.errors import NoProgressError as NoProgressError
    from dask_belief.errors import NoWorkersError as NoWorkersError
    from dask_belief.errors import ReplicaError as ReplicaError
    from dask_belief.errors import StaleError as StaleError
    from dask_belief.errors import UnknownLayerError as UnknownLayerError
    from dask_belief.model_parallel.cost import Speeds as Speeds
    from dask_belief.model_parallel.plan import partition as partition
    from dask_belief.models.box import Box as Box
    from dask_belief.models.layers.add import Add as Add
    from dask_belief.models.layers.base import Layer as Layer
    from dask_belief.models.layers.base import Part as Part
    from dask_belief.models.layers.base import Workspace as Workspace
    from dask_belief.models.layers.convolution import Conv2D as Conv2D
    from dask_belief.models.layers.dense import Dense as Dense
    from dask_belief.models.layers.dropout import Dropout as Dropout
    from dask_belief.models.layers.embedding import Embedding as Embedding
    from dask_belief.models.layers.flatten import Flatten as Flatten
    from dask_belief.models.layers.layer_norm import LayerNorm as LayerNorm
    from dask_belief.models.layers.local_contrast_norm import LocalContrastNorm2D as LocalContrastNorm2D
    from dask_belief.models.layers.locally_connected import LocallyConnected2D as LocallyConnected2D
    from dask_belief.models.layers.pooling import AveragePool2D as AveragePool2D
    from dask_belief.models.layers.pooling import L2Pool2D as L2Pool2D
    from dask_belief.models.layers.pooling import MaxPool2D as MaxPool2D
    from dask_belief.models.layers.registry import register_layer as register_layer
    from dask_belief.models.network import Network as Network
    from dask_belief.objective import Objective as Objective
    from dask_belief.optim.rules import SGD as SGD
    from dask_belief.optim.rules import Adagrad as Adagrad
    from dask_belief.optim.rules import Adam as Adam
    from dask_belief.optim.rules import Momentum as Momentum
    from dask_belief.optim.rules import Nesterov as Nesterov
    from dask_belief.optim.rules import RMSProp as RMSProp
    from dask_belief.optim.schedules import Cosine as Cosine
    from dask_belief.optim.schedules import ExponentialDecay as ExponentialDecay
    from dask_belief.optim.schedules import InverseTimeDecay as InverseTimeDecay
    from dask_belief.optim.schedules import StepDecay as StepDecay
    from dask_belief.optim.schedules import Warmup as Warmup
    from dask_belief.optim.stopping import Stop as Stop
    from dask_belief.optim.stopping import StopReason as StopReason
    from dask_belief.parameter_server.consistency import ElasticAveraging as ElasticAveraging
    from dask_belief.parameter_server.consistency import MaxStaleness as MaxStaleness
    from dask_belief.parameter_server.consistency import ScaleByStaleness as ScaleByStaleness
    from dask_belief.parameter_server.consistency import Synchronous as Synchronous
    from dask_belief.predicting import predict as predict
    from dask_belief.result import TrainingResult as TrainingResult
    from dask_belief.result import load_result as load_result
    from dask_belief.sandblaster.config import Sandblaster as Sandblaster
    from dask_belief.training import resume as resume
    from dask_belief.training import train as train

_HOMES = {
    "backend": ("get_backend",),
    "cluster.detached": ("DetachedRun", "attach"),
    "cluster.limits": ("Limits",),
    "cluster.local_gpu": ("LocalGPUCluster",),
    "cluster.retiring": ("retire_workers",),
    "checkpoint": ("Checkpoint",),
    "data.dataset": ("ArrayDataset", "Dataset"),
    "data.write": ("write_dataset",),
    "data.zarr_dataset": ("ZarrDataset",),
    "downpour.config": ("Downpour",),
    "downpour.replay": ("replay",),
    "errors": (
        "ActorLostError",
        "ArgumentError",
        "CallTimeoutError",
        "CheckpointError",
        "ClusterError",
        "DaskBeliefError",
        "DataError",
        "DoesNotFitError",
        "EmptyDataError",
        "LayerContractError",
        "MissingStoreError",
        "NoGPU",
        "NoProgressError",
        "NoWorkersError",
        "NonFiniteDataError",
        "NonFiniteError",
        "ReplicaError",
        "StaleError",
        "UnknownLayerError",
    ),
    "model_parallel.cost": ("Speeds",),
    "model_parallel.plan": ("partition",),
    "models.box": ("Box",),
    "models.layers.add": ("Add",),
    "models.layers.base": ("Layer", "Part", "Workspace"),
    "models.layers.convolution": ("Conv2D",),
    "models.layers.dense": ("Dense",),
    "models.layers.dropout": ("Dropout",),
    "models.layers.embedding": ("Embedding",),
    "models.layers.flatten": ("Flatten",),
    "models.layers.layer_norm": ("LayerNorm",),
    "models.layers.local_contrast_norm": ("LocalContrastNorm2D",),
    "models.layers.locally_connected": ("LocallyConnected2D",),
    "models.layers.pooling": ("AveragePool2D", "L2Pool2D", "MaxPool2D"),
    "models.layers.registry": ("register_layer",),
    "models.network": ("Network",),
    "objective": ("Objective",),
    "optim.rules": ("SGD", "Adagrad", "Adam", "Momentum", "Nesterov", "RMSProp"),
    "optim.schedules": ("Cosine", "ExponentialDecay", "InverseTimeDecay", "StepDecay", "Warmup"),
    "optim.stopping": ("Stop", "StopReason"),
    "parameter_server.consistency": ("ElasticAveraging", "MaxStaleness", "ScaleByStaleness", "Synchronous"),
    "result": ("TrainingResult", "load_result"),
    "sandblaster.config": ("Sandblaster",),
    "predicting": ("predict",),
    "training": ("resume", "train"),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}
_MODULES = ("testing",)

__all__ = sorted((*_HOME, *_MODULES))


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return __all__
