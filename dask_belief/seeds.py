"""One root seed to named, independent streams of random numbers.

Every random number of a run comes from here, so a run can be repeated from its seed alone. A stream is known by its
name, not by the order in which it is asked for: two replicas that ask at different times get the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """Give the generator of one named stream.

    Parameters
    ----------
    seed
        The run's root seed, zero or more.
    *name
        What the numbers are for, from the general to the special: ``stream(seed, "rows", epoch, lease)``.

    Returns
    -------
    numpy.random.Generator
        Counter-based (Philox), independent of every stream of another name or seed.

    Examples
    --------
    >>> bool(stream(0, "rows", 1).random() == stream(0, "rows", 1).random())
    True
    >>> bool(stream(0, "rows", 1).random() == stream(0, "rows", 2).random())
    False
    """
    spawn_key = tuple(_word(part) for part in name)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy=seed, spawn_key=spawn_key)))


def key(seed: int, *name: str | int) -> int:
    """Give one number of 64 bits for a name: what a pass or a layer draws its own random numbers from.

    Parameters
    ----------
    seed
        The run's root seed, or the key of something larger, zero or more.
    *name
        As in `stream`. A mini-batch of Downpour is ``key(seed, "pass", epoch, lease, mini_batch)``.

    Examples
    --------
    >>> key(0, "pass", 1, 2, 3) == key(0, "pass", 1, 2, 3), key(0, "pass", 1, 2, 3) == key(0, "pass", 1, 3, 2)
    (True, False)
    """
    words = b"".join(_word(part).to_bytes(8, "little") for part in (seed, *name))
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def _word(part: str | int) -> int:
    """One part of a name as a 64-bit number; a string and a number never share one by construction."""
    tagged = f"{type(part).__name__}:{part}".encode()
    return int.from_bytes(hashlib.blake2b(tagged, digest_size=8).digest(), "little")
