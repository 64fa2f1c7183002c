"""The declared way from stored numbers to the numbers that are trained on.

Images and counts are stored as small integers and become floats when they are read: a quarter of the bytes on the
disk and in the network, and the scaling is done while the values are in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_belief.errors import ArgumentError


@dataclass(frozen=True)
class Scale:
    """Inputs become ``stored * scale + offset``, computed in the floating-point type of the run.

    Attributes
    ----------
    scale
        The factor, finite and not 0; ``1 / 255`` turns bytes into numbers from 0 to 1.
    offset
        What is added after the multiplication, finite.

    Raises
    ------
    ArgumentError
        If a number is not finite, or `scale` is 0.

    Examples
    --------
    >>> values = np.array([0, 128, 255], dtype=np.float32)
    >>> Scale(1 / 255).apply_(values)
    >>> values.round(2).tolist()
    [0.0, 0.5, 1.0]
    """

    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "offset"):
            value = getattr(self, name)
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise ArgumentError(f"{name}: a number is needed, found {value!r}") from None
            if not math.isfinite(number):
                raise ArgumentError(f"{name}: a finite number is needed, found {number}")
            object.__setattr__(self, name, number)
        if self.scale == 0.0:
            raise ArgumentError("scale: found 0, which would make all inputs equal; give the factor of stored inputs")

    @property
    def is_identity(self) -> bool:
        """Whether stored values are used as they are."""
        return self.scale == 1.0 and self.offset == 0.0

    def apply_(self, values: npt.NDArray[np.floating]) -> None:
        """Scale `values` in place; a factor of 1 and an offset of 0 cost nothing."""
        if self.scale != 1.0:
            values *= self.scale
        if self.offset != 0.0:
            values += self.offset

    def decode(self, stored: npt.NDArray[Any], out: npt.NDArray[np.floating]) -> None:
        """Cast and scale `stored` into `out`, of the same shape, with no array in between."""
        np.copyto(out, stored, casting="unsafe")
        self.apply_(out)

    def to_config(self) -> dict[str, float]:
        """Describe the transform by plain JSON."""
        return {"scale": self.scale, "offset": self.offset}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Scale:
        """Rebuild what `to_config` described.

        Raises
        ------
        ArgumentError
            If `config` holds anything but a scale and an offset.
        """
        unknown = sorted(set(config) - {"scale", "offset"})
        if unknown:
            raise ArgumentError(f"transform: found {unknown}, which this version does not know; use a newer version")
        return cls(**config)
