"""What a commit removes: decided from names alone.

Manifests go first, then what no manifest names, so that at every moment each manifest has all that it names. The
vectors of a save that is under way are named by no manifest yet; they are told from those of one that was broken off by
the numbers in their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dask_belief.checkpoint.manifest import Manifest, history_number, manifest_key, manifest_number
from dask_belief.checkpoint.parts import number_in, number_in_path
from dask_belief.data.folder import PARTIAL


def unwanted_manifests(numbers: Iterable[int], readable: Iterable[int], newest: int, keep: int) -> list[int]:
    """The manifests to remove.

    Parameters
    ----------
    numbers
        Those that are there.
    readable
        Those of them that read well.
    newest
        The one just committed. Those with higher numbers are of a way that the run did not go on from.
    keep
        How many that read well stay.
    """
    oldest = sorted(number for number in readable if number <= newest)[-keep:][0]
    return [number for number in numbers if number > newest or number < oldest]


def unwanted_files(names: Sequence[str], kept: Iterable[int]) -> list[str]:
    """The histories to remove, of the files right below the folder, when these manifests are kept."""
    wanted = set(kept)
    return [name for name in names if (number := history_number(name)) is not None and number not in wanted]


def unwanted_parts(keys: Iterable[str], kept: Iterable[Manifest], below: int | None) -> list[str]:
    """The files of parts to remove, of those below the vectors' folder.

    Parameters
    ----------
    keys
        The files.
    kept
        The manifests that stay, all of them.
    below
        Only vectors with a number below this one are touched; None for all of them.
    """
    wanted = set().union(*(manifest.paths() for manifest in kept))
    unwanted = []
    for key in keys:
        number = number_in_path(key)
        is_old = below is None or (number is not None and number < below)
        is_named = "/".join(key.split("/")[:3]) in wanted and not key.endswith(PARTIAL)
        if is_old and not is_named:
            unwanted.append(key)
    return unwanted


def highest_number(manifest: Manifest) -> int:
    """The highest number in the names of its vectors: what a save after it writes is not below."""
    return max((number_in(name) for name in manifest.saved.vectors), default=0)


def is_ours(name: str) -> bool:
    """Whether a file or a folder right below the checkpoint's folder is one that we make."""
    is_file = manifest_number(name) is not None or history_number(name) is not None
    return is_file or name in ("zarr.json", "vectors") or name.endswith(PARTIAL)


def keys_of(numbers: Iterable[int]) -> list[str]:
    """The files of manifests."""
    return [manifest_key(number) for number in numbers]
