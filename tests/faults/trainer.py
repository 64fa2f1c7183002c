"""A program that trains on a cluster, for tests that stop it: ``python -m tests.faults.trainer`` with five arguments.

They are the scheduler's address, the method, the data set, the checkpoint and where the result goes. It says on its
standard output what it has come to.
"""

from __future__ import annotations

import signal
import sys

from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Saved
from tests.row_counts import OPTIONS, RowCounts

METHODS: dict[str, db.Sandblaster | db.Downpour] = {
    "sandblaster": db.Sandblaster(max_iter=40, l2=1e-3, gtol=0.0, ftol=0.0, n_shards=2),
    "downpour": db.Downpour(rule=db.Adagrad(0.05), batch_size=16, epochs=40, n_shards=2),
}

COUNTING = "counting"
"""The method that counts rows instead of training a network."""

COUNTED_ROWS, COUNTED_SHARDS = 2048, 2


def counting() -> RowCounts:
    """What the data set of `COUNTING` is for."""
    return RowCounts(COUNTED_ROWS, COUNTED_SHARDS)


def method_of(name: str) -> db.Sandblaster | db.Downpour:
    """How it is trained."""
    if name == COUNTING:
        return db.Downpour(**OPTIONS, lease_rows=64, epochs=10, n_shards=COUNTED_SHARDS)
    return METHODS[name]


def network() -> db.Network:
    """What is trained."""
    return db.Network([db.Dense(8, "sigmoid"), db.Dense(1)], loss="logistic", input_shape=(20,))


def say(word: str) -> None:
    """Tell the test, at once."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def hear(event: Event) -> None:
    """Tell the test of progress."""
    if isinstance(event, IterationEnded | DownpourProgressed | Saved):
        say("saved" if isinstance(event, Saved) else "progressed")


def main(scheduler: str, method: str, store: str, checkpoint: str, result: str) -> None:
    """Train until the end, or until Ctrl-C."""
    # Whatever this is started from may ignore interrupts, as a shell does for what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Client(scheduler, set_as_default=False) as client:
        try:
            # Whoever hears it may interrupt at once.
            say("begins")
            trained = db.train(
                counting() if method == COUNTING else network(),
                store,
                method_of(method),
                client=client,
                callbacks=[hear],
                progress=False,
                checkpoint=db.Checkpoint(checkpoint, every_seconds=0),
                limits=db.Limits(deserted_seconds=2.0),
            )
        except KeyboardInterrupt:
            # It had not begun yet.
            say("interrupted")
        else:
            say("ended")
            trained.save(result)
            say(f"result {trained.stop.reason.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    # What is left is Python's own end, which an interrupt would kill.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
