"""Training data: stores, work units, caching, reading ahead and mini-batches."""

from __future__ import annotations

from dask_belief.data.batches import Batch, MiniBatches, n_batches
from dask_belief.data.cache import UnitCache
from dask_belief.data.dataset import ArrayDataset, Dataset, DatasetLike, ZarrDataset, as_dataset
from dask_belief.data.prefetch import Prefetcher
from dask_belief.data.transform import Scale
from dask_belief.data.units import UnitPlan, WorkUnit, plan_units
from dask_belief.data.write import write_dataset

__all__ = [
    "ArrayDataset",
    "Batch",
    "Dataset",
    "DatasetLike",
    "MiniBatches",
    "Prefetcher",
    "Scale",
    "UnitCache",
    "UnitPlan",
    "WorkUnit",
    "ZarrDataset",
    "as_dataset",
    "n_batches",
    "plan_units",
    "write_dataset",
]
