"""A program that trains on a cluster, for tests that stop it: ``python -m tests.faults.trainer`` with five arguments.

They are the scheduler's address, the method, the data set, the checkpoint and where the result goes. It says on its
standard output what it has come to.
"""

from __future__ import annotations

import sys

from distributed import Client

import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, Saved

METHODS: dict[str, db.Sandblaster | db.Downpour] = {
    "sandblaster": db.Sandblaster(max_iter=40, l2=1e-3, gtol=0.0, ftol=0.0, n_shards=2),
    "downpour": db.Downpour(rule=db.Adagrad(0.05), batch_size=16, epochs=40, n_shards=2),
}


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
    with Client(scheduler, set_as_default=False) as client:
        say("begins")
        try:
            trained = db.train(
                network(),
                store,
                METHODS[method],
                client=client,
                callbacks=[hear],
                progress=False,
                checkpoint=db.Checkpoint(checkpoint, every_seconds=0),
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
