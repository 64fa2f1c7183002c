"""The record of a Downpour run: in which order the shards were reached, so that it can be run again to the bit.

What a replica computes follows from its leases and from what its fetches held; what a fetch held follows from the
order in which pushes and fetches reached each piece. So that order is all that is written, by keys and without vectors,
beside the beginning and the options. A record is a Zarr group, readable without this package:

::

    attributes       options, seed, network, data set, pieces, replicas' kinds; "is_whole" once the run has ended
    initial, last    float, (n_parameters,)
    pieces/0 ...     int64, (n_exchanges, 8): replica, epoch, lease, step, first and last mini-batch of the push that
                     was applied or -1, whether values were fetched; in the order in which the piece was reached
    fetches          int64, (n_fetches, 5 + n_pieces): replica, epoch, lease, the step at which it was begun, how many
                     mini-batches of the replica later it took effect, and how many updates each piece of it had had

`fetches` follows from `pieces`; it is there to be read, when the question is why a run went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_belief.data.units import UnitPlan
from dask_belief.data.zarr_dataset import ZarrDataset
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.sparse_executor import is_sparse
from dask_belief.errors import ArgumentError, DataError, MissingStoreError
from dask_belief.models.network import Network
from dask_belief.parameter_server.consistency import ElasticAveraging, Synchronous
from dask_belief.parameter_server.deployment import Deployment
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import LeaseKey, Logged, StepKey
from dask_belief.parameter_server.ranges import pieces
from dask_belief.run import Facts

FORMAT = 1
ATTRIBUTE = "dask_belief_record"

Vector = NDArray[np.floating]
Table = NDArray[np.int64]

_COLUMNS = 9

_NOBODY = -1
"""Stands for the replica of a push in a round."""


class Recorder:
    """Writes the record of a run as it goes on.

    Parameters
    ----------
    path
        Where to; an older record there is replaced, see `check_path`.
    facts, method, plan
        What is run.
    """

    def __init__(self, path: Path, facts: Facts, method: Downpour, plan: UnitPlan) -> None:
        import zarr

        self._method = method
        self._is_sparse = is_sparse(facts.objective, method, "numpy")
        self._group = zarr.open_group(str(path), mode="w")
        self._write("initial", facts.initial)
        self._is_broken = False
        self._head: dict[str, Any] = {
            "format": FORMAT,
            "is_whole": False,
            "method": method.to_config(),
            "seed": facts.seed,
            "dtype": facts.dtype,
            "network": facts.objective.to_config() if isinstance(facts.objective, Network) else None,
            "dataset": facts.dataset.address if isinstance(facts.dataset, ZarrDataset) else None,
            "plan": asdict(plan),
            "kinds": [],
            "shards": [],
        }

    def _write(self, name: str, vector: NDArray[Any]) -> None:
        self._group.create_array(name, shape=vector.shape, dtype=vector.dtype, overwrite=True)[...] = vector

    def begin(self, directory: Directory) -> None:
        """Note where the shards' borders are, as the run begins."""
        self._head["shards"] = [[span.start, span.stop] for span in directory.ranges]
        for number in range(n_pieces(directory.ranges, directory.dtype)):
            self._group.create_array(
                f"pieces/{number}", shape=(0, _COLUMNS), chunks=(65_536, _COLUMNS), dtype=np.int64, overwrite=True
            )
        self._group.attrs[ATTRIBUTE] = self._head

    def break_off(self) -> None:
        """Note that shards or ledger were made anew: what they had not told is missing."""
        self._is_broken = True

    def collect(self, deployment: Deployment) -> None:
        """Write what was exchanged since the last time."""
        for number, log in enumerate(deployment.run(deployment.server.take_logs())):
            if log:
                self._array(number).append(np.array([_row(each) for each in log], np.int64))

    def _array(self, number: int) -> Any:
        return self._group[f"pieces/{number}"]

    def close(self, deployment: Deployment, last: Vector, kinds: Sequence[str]) -> None:
        """Write the rest, as the run has ended at parameters `last`.

        A record of a run that lost shards or ledger stays without ``is_whole``: what they had not told is missing.
        """
        self.collect(deployment)
        self._write("last", last)
        if self._is_broken:
            # Without what is missing, nobody knows what a fetch held.
            self._group.attrs[ATTRIBUTE] = self._head | {"kinds": sorted(kinds)}
            return
        tables = [np.asarray(self._array(number)[...]) for number in range(deployment.server.n_pieces)]
        self._write("fetches", fetches(tables, self._method, self._is_sparse))
        self._head |= {"is_whole": not self._is_broken, "kinds": sorted(kinds)}
        self._group.attrs[ATTRIBUTE] = self._head


def n_pieces(ranges: Sequence[range], dtype: str) -> int:
    """In how many pieces the shards' ranges travel."""
    return sum(len(pieces(span, dtype)) for span in ranges)


def _row(logged: Logged) -> tuple[int, ...]:
    lease = logged.at.lease
    replica = int(logged.replica.rpartition("-")[2]) if logged.replica else _NOBODY
    return (
        replica,
        *lease,
        logged.at.step,
        logged.at.began,
        logged.first,
        logged.last,
        int(logged.is_taken),
        int(logged.has_fetched),
    )


def fetches(tables: Sequence[Table], method: Downpour, is_sparse: bool = False) -> Table:
    """Tell of every fetch when it took effect, and how many updates, or rounds, each piece of it had had."""
    is_elastic, is_synchronous = (isinstance(method.staleness, way) for way in (ElasticAveraging, Synchronous))
    held: dict[tuple[int, ...], list[int]] = {}
    for number, table in enumerate(tables):
        n_updates = 0
        for replica, epoch, lease, step, began, *_, is_taken, has_fetched in table.tolist():
            if replica == _NOBODY:
                n_updates = step + 1
                continue
            n_updates += is_taken and not is_synchronous
            if has_fetched or (is_elastic and is_taken):
                held.setdefault((replica, epoch, lease, step, began), [-1] * len(tables))[number] = n_updates
    rows, seen = [], set[int]()
    for (replica, epoch, lease, step, began), versions in held.items():
        # A replica's first fetch is waited for, and a sparse one at the start of a lease.
        is_waited_for = replica not in seen or (is_sparse and step == began)
        rows.append((replica, epoch, lease, step, 0 if is_waited_for else method.lag, *versions))
        seen.add(replica)
    return np.array(rows, np.int64).reshape(-1, 5 + len(tables))


def check_path(path: Path) -> None:
    """Refuse a path at which there is something else than an older record; raises `ArgumentError`."""
    import zarr

    try:
        is_replaceable = ATTRIBUTE in zarr.open_group(str(path), mode="r").attrs
    except OSError:
        # No group there; Zarr's error for that is a ValueError, too.
        is_replaceable = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    except ValueError:
        is_replaceable = False
    if not is_replaceable:
        raise ArgumentError(f"record: {path} holds something else than a record. Give another path.")


class Record(NamedTuple):
    """A record that was read.

    Attributes
    ----------
    head
        Its attributes.
    initial, last
        Parameters at the beginning and at the end.
    logs
        Per piece, the exchanges in their order.
    """

    head: dict[str, Any]
    initial: Vector
    last: Vector
    logs: list[list[Logged]]

    @property
    def shards(self) -> tuple[range, ...]:
        """The range of each shard."""
        return tuple(range(*span) for span in self.head["shards"])


def read_record(path: str | Path) -> Record:
    """Open a record.

    Raises
    ------
    MissingStoreError
        When there is none at `path`.
    DataError
        When it is of a newer version, or of a run that did not end, or that lost shards on its way.
    """
    import zarr

    try:
        group = zarr.open_group(str(path), mode="r")
        head: Any = group.attrs[ATTRIBUTE]
    except (OSError, KeyError, ValueError) as error:
        raise MissingStoreError(f"{path}: holds no record. Give the path that was given as record=.") from error
    if head["format"] > FORMAT:
        raise DataError(f"{path}: has format {head['format']}, this version knows up to {FORMAT}. Update dask_belief.")
    if not head["is_whole"]:
        raise DataError(
            f"{path}: the run did not come to its end, or lost a shard on its way, so a part of the order of its "
            "exchanges is missing. Its tables can be read; it cannot be run again."
        )
    ranges = [range(*span) for span in head["shards"]]
    tables = [np.asarray(group[f"pieces/{number}"][...]) for number in range(n_pieces(ranges, head["dtype"]))]  # type: ignore[index]
    logs = [[_logged(row) for row in table.tolist()] for table in tables]
    return Record(dict(head), np.asarray(group["initial"][...]), np.asarray(group["last"][...]), logs)  # type: ignore[index]


def _logged(row: list[int]) -> Logged:
    replica, epoch, lease, step, began, first, last, is_taken, has_fetched = row
    name = "" if replica == _NOBODY else f"replica-{replica}"
    return Logged(name, StepKey(LeaseKey(epoch, lease), step, began), first, last, bool(is_taken), bool(has_fetched))
