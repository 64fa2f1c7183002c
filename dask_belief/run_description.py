"""What a checkpoint says of a run beside its state: all that is needed to go on with it, as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dask_belief.data.dataset import Dataset
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.downpour.config import Downpour
from dask_belief.errors import ArgumentError, CheckpointError, DaskBeliefError, UnknownLayerError
from dask_belief.model_parallel.partitioned import PartitionedNetwork
from dask_belief.models.network import Network
from dask_belief.objective import Objective
from dask_belief.sandblaster.config import Sandblaster

Method = Sandblaster | Downpour

_KINDS: dict[str, type[Sandblaster] | type[Downpour]] = {"Sandblaster": Sandblaster, "Downpour": Downpour}


@dataclass(frozen=True)
class DataShape:
    """What rows must be like for a run to go on with them.

    Attributes
    ----------
    address
        Where they are; None where they cannot be opened by name.
    n_rows, chunk_rows
        How many, and in which chunks: work units and leases follow from both.
    input_shape, target_shape
        Of one row.
    input_dtype, target_dtype
        As stored, by name.
    """

    address: str | None
    n_rows: int
    chunk_rows: int
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    input_dtype: str
    target_dtype: str

    @classmethod
    def of(cls, data: Dataset) -> DataShape:
        """Describe a data set."""
        address = data.address if isinstance(data, ZarrDataset) and isinstance(data.address, str) else None
        return cls(
            address=address,
            n_rows=data.n_rows,
            chunk_rows=data.chunk_rows,
            input_shape=tuple(data.input_shape),
            target_shape=tuple(data.target_shape),
            input_dtype=data.input_dtype.name,
            target_dtype=data.target_dtype.name,
        )

    def check(self, data: Dataset, argument: str) -> None:
        """Refuse other rows than the run had; raises `ArgumentError`."""
        found = DataShape.of(data)
        for name in ("n_rows", "chunk_rows", "input_shape", "target_shape", "input_dtype", "target_dtype"):
            ours, theirs = getattr(self, name), getattr(found, name)
            if ours != theirs:
                raise ArgumentError(f"{argument}: the checkpoint is of rows with {name} {ours}, these have {theirs}.")


@dataclass(frozen=True)
class RunDescription:
    """A run as its checkpoint describes it.

    Attributes
    ----------
    network
        Of the objective, by `Network.to_config`; None for another objective.
    n_parameters
        Of the objective.
    dataset, validation
        The rows; `validation` None for none.
    methods
        The kind and the options of each method, in their order.
    seed, dtype, backend
        As given to `dask_belief.train`.
    """

    network: dict[str, Any] | None
    n_parameters: int
    dataset: DataShape
    validation: DataShape | None
    methods: tuple[tuple[str, dict[str, Any]], ...]
    seed: int
    dtype: str
    backend: str

    @classmethod
    def of(
        cls,
        objective: Objective,
        dataset: Dataset,
        validation: Dataset | None,
        methods: Sequence[Method],
        seed: int,
        dtype: str,
        backend: str,
    ) -> RunDescription:
        """Describe a run."""
        return cls(
            network=objective.to_config() if isinstance(objective, Network | PartitionedNetwork) else None,
            n_parameters=int(objective.n_parameters),
            dataset=DataShape.of(dataset),
            validation=None if validation is None else DataShape.of(validation),
            methods=tuple((type(method).__name__, method.to_config()) for method in methods),
            seed=seed,
            dtype=dtype,
            backend=backend,
        )

    def to_config(self) -> dict[str, Any]:
        """Write it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RunDescription:
        """Read what `to_config` wrote.

        Raises
        ------
        CheckpointError
            When something is missing, or not what it should be.
        """
        try:
            validation = config["validation"]
            if config["dtype"] not in ("float32", "float64") or int(config["seed"]) < 0:
                raise ValueError(f"dtype {config['dtype']!r} and seed {config['seed']!r}")
            return cls(
                network=None if config["network"] is None else dict(config["network"]),
                n_parameters=int(config["n_parameters"]),
                dataset=_shape(config["dataset"]),
                validation=None if validation is None else _shape(validation),
                methods=tuple((str(kind), dict(options)) for kind, options in config["methods"]),
                seed=int(config["seed"]),
                dtype=str(config["dtype"]),
                backend=str(config["backend"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(error) from error

    def objective(self) -> Network | PartitionedNetwork:
        """Make the objective again.

        Raises
        ------
        ArgumentError
            When it was no `Network`, or has a layer of the user's own that is not registered.
        CheckpointError
            When its description is damaged.
        """
        if self.network is None:
            raise ArgumentError("objective: the checkpoint is of an objective of your own; give it.")
        try:
            if "pieces" in self.network:
                return PartitionedNetwork.from_config(self.network)
            return Network.from_config(self.network)
        except UnknownLayerError:
            raise
        except (DaskBeliefError, KeyError, TypeError, ValueError) as error:
            raise _damaged(error) from error

    def method(self, number: int) -> Method:
        """Make the options of one of the methods again.

        Raises
        ------
        ArgumentError
            When its direction was a function of the user's own.
        CheckpointError
            When their description is damaged.
        """
        kind, options = self.methods[number]
        if kind == "Sandblaster" and options.get("direction", "") is None:
            raise ArgumentError(
                "method: its direction was a function of your own; give the method again as method=, or all methods of "
                "the run where there are several."
            )
        try:
            return _KINDS[kind].from_config(options)
        except (DaskBeliefError, KeyError, TypeError, ValueError) as error:
            raise _damaged(error) from error


def _shape(config: Mapping[str, Any]) -> DataShape:
    return DataShape(
        address=None if config["address"] is None else str(config["address"]),
        n_rows=int(config["n_rows"]),
        chunk_rows=int(config["chunk_rows"]),
        input_shape=tuple(int(size) for size in config["input_shape"]),
        target_shape=tuple(int(size) for size in config["target_shape"]),
        input_dtype=str(config["input_dtype"]),
        target_dtype=str(config["target_dtype"]),
    )


def _damaged(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: what it says of the run cannot be read: {error!r}. It is damaged; resume from the one before, by "
        "number=."
    )
