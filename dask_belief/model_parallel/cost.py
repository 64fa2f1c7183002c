"""What computing and sending cost, by the speeds of machines and network."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dask_belief.errors import ArgumentError


@dataclass(frozen=True)
class Speeds:
    """How fast machines compute and what lies between them carries.

    The defaults are of one core with AVX2, and of messages between processes of one machine.

    Raises
    ------
    ArgumentError
        One is not above zero.
    """

    operations_per_second: float = 4e10
    """Floating-point operations in large products, of one piece."""

    bytes_per_second: float = 1e9
    """Of one piece's messages, in and out."""

    seconds_per_message: float = 1e-3
    """What a message takes beside its bytes."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for field in fields(self):
            if not (value := getattr(self, field.name)) > 0:
                raise ArgumentError(f"{field.name}: expected a number above zero, got {value!r}.")

    def seconds(self, operations: float, n_bytes: float, n_messages: float) -> float:
        """Give how long one piece takes that waits for all its messages, and then computes."""
        sending = n_bytes / self.bytes_per_second + n_messages * self.seconds_per_message
        return operations / self.operations_per_second + sending
