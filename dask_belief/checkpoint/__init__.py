"""Checkpoints: a folder, or an fsspec URL, in which a run saves itself, as plain Zarr and JSON.

::

    path/zarr.json                         a Zarr group; its attribute "dask_belief_checkpoint" says that it is ours
    path/vectors/x@12/4096-6c1b.../        one Zarr array: values 4096 and on of the vector "x@12"
    path/vectors/state.accumulator@3/...   a colon in a name becomes a dot, which no name has
    path/history-000012.json               the events until then
    path/manifest-000012.json              which vectors, in which parts, and the method's state; written last

A checkpoint is there when its manifest is: one rename on a local disk, one put elsewhere. The folder of a part carries
its digest, so nothing that a manifest names is ever written again with other values: a worker that was frozen, and
writes late what its run has given up, writes beside it. Digests are over names and places too, and so find what was
damaged, cut, swapped or renamed.

Parts do not wait for the disk, the manifest does. After a loss of power the newest checkpoint may therefore lack some
of its values: the digests say so, and the one before, which the system has most likely written by then, is offered.

It is read without this package::

    manifest = json.loads(Path(path, "manifest-000012.json").read_text())
    parts = manifest["vectors"]["x@12"]
    x = np.concatenate([zarr.open_array(f"{path}/{part['path']}", mode="r")[:] for part in parts])
"""

from dask_belief.checkpoint.manifest import Loaded, SavedState
from dask_belief.checkpoint.parts import Part
from dask_belief.checkpoint.store import Checkpoint, CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "Loaded", "Part", "SavedState"]
