"""Chunks that are the rows themselves: files of a local folder, uncompressed, in the machine's order of bytes.

Such rows go straight from the file to where they are wanted. Zarr reads a file into bytes of its own and copies them,
and its event loop and threads take turns with whoever computes: for chunks of 3 MB that the system has in memory,
0.20 to 0.30 processor seconds a GB, against 0.05 this way. It matters because the processor is what reading and
computing share.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Linux takes no more at once than a device's largest request, half a megabyte or more.
_ADVICE_BYTES = 512 * 2**10


@dataclass(frozen=True)
class PlainChunks:
    """The chunk files of one array that is chunked along axis 0 alone.

    Attributes
    ----------
    folder
        Of the array.
    key
        From the number of a chunk to the name of its file in the folder.
    chunk_rows
        Rows of every file; the last is filled up.
    row_shape, dtype
        Of the rows in the files.
    """

    folder: str
    key: Callable[[int], str]
    chunk_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int, out: npt.NDArray[Any]) -> bool:
        """Read rows into `out`, C-contiguous ``(stop - start, *row_shape)`` of the files' dtype.

        Returns
        -------
        bool
            False when a file is missing or has another size than all its rows: Zarr knows what that means. `out` is
            half written then.
        """
        row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        view = memoryview(out.reshape(-1).view(np.uint8).data)
        position = start
        while position < stop:
            number, first = divmod(position, self.chunk_rows)
            n_rows = min(self.chunk_rows - first, stop - position)
            low = (position - start) * row_bytes
            if not self._read_file(number, first * row_bytes, view[low : low + n_rows * row_bytes]):
                return False
            position += n_rows
        return True

    def advise(self, start: int, stop: int) -> None:
        """Ask the system to bring rows from the disk into its memory, and do not wait; a file that is missing is left.

        Nothing is asked where the system knows no such advice.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        for number in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
            first = number * self.chunk_rows
            low, high = max(start - first, 0) * row_bytes, min(stop - first, self.chunk_rows) * row_bytes
            with contextlib.suppress(FileNotFoundError), open(self._path(number), "rb", buffering=0) as file:
                if _is_near(file.fileno(), high - 1):
                    continue
                for offset in range(low, high, _ADVICE_BYTES):
                    os.posix_fadvise(file.fileno(), offset, _ADVICE_BYTES, os.POSIX_FADV_WILLNEED)

    def _path(self, number: int) -> str:
        return os.path.join(self.folder, self.key(number))

    def _read_file(self, number: int, offset: int, view: memoryview) -> bool:
        whole = self.chunk_rows * math.prod(self.row_shape) * self.dtype.itemsize
        try:
            with open(self._path(number), "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != whole:
                    return False
                file.seek(offset)
                # One call reads 2 GiB at most.
                while len(view) and (n_read := file.readinto(view)):
                    view = view[n_read:]
        except FileNotFoundError:
            return False
        return not len(view)


def _is_near(descriptor: int, offset: int) -> bool:
    """Whether the system has this byte in memory; its neighbours before it came earlier, and so are likely there, too.

    Advice costs as much as copying when every page is there already: the system looks for each of them.
    """
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT))
    except (AttributeError, OSError):
        # It is not there, or the system or its file system cannot tell.
        return False
