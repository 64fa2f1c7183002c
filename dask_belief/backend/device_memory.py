"""What is known of a device's memory at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device as one process sees it, in bytes.

    Attributes
    ----------
    total_bytes
        What the device has; less where this process is limited to less.
    used_bytes
        Arrays of this process.
    free_bytes
        What further arrays of this process may take, what it has freed and keeps for them included.
    """

    total_bytes: int
    used_bytes: int
    free_bytes: int

    @property
    def other_bytes(self) -> int:
        """Held by other processes, and by CUDA itself."""
        return max(0, self.total_bytes - self.used_bytes - self.free_bytes)
