"""The demo: prepare the flights, train on a local Dask cluster by both methods, compare, and draw the curves.

``python -m pipelines.tabular.train --help`` lists the options; ``scripts/demo`` calls it in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

# Each worker process of the cluster imports this module again, as it does with any program's main module. So what only
# the main process needs, pandas, scikit-learn and matplotlib, is imported by the functions that use it.
import dask_belief as db
from dask_belief.monitoring.events import DownpourProgressed, IterationEnded, Validated
from pipelines.tabular.baselines import baselines
from pipelines.tabular.evaluate import Curve, Outcome, draw_curves, format_table, log_loss, score
from pipelines.tabular.model import Run, Settings, runs
from pipelines.tabular.prepare import Prepared, prepare

if TYPE_CHECKING:
    from distributed import Client

QUICK_ROWS = 6_000
READ_ROWS = 65_536


class Trained(NamedTuple):
    """What came of one run."""

    outcome: Outcome
    training: Curve
    validation: Curve
    saved: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; gives the exit status."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Where there is no terminal for a bar, progress is a line every few seconds in the log.
    logging.getLogger("dask_belief.monitoring.progress").setLevel(logging.INFO)
    start = time.perf_counter()
    settings = Settings.quick() if options.quick else Settings()
    say("Preparing the flights ...")
    prepared = prepare(options.output, seed=options.seed, max_rows=QUICK_ROWS if options.quick else None)
    say(describe(prepared, time.perf_counter() - start))
    say("Training scikit-learn's models on the same columns ...")
    compared = baselines(prepared, settings, options.seed, fresh=options.fresh)
    trained = train_all(prepared, settings, options.workers, options.seed)
    outcomes = [*compared, *(one.outcome for one in trained)]
    table = format_table(outcomes, prepared.rows["left_out"])
    say(f"\n{table}\n")
    write_results(options.output, table, outcomes)
    draw_curves(
        options.output / "curves.png", [t.training for t in trained], [t.validation for t in trained], compared[1:]
    )
    say(describe_files(options.output, trained))
    say(f"Done in {time.perf_counter() - start:.0f} s.")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="demo", description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--output", type=lambda text: Path(text).expanduser().absolute(), default=Path("demo-output").absolute(),
        help="folder for data, models, table and picture (default: demo-output)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROWS:,} flights and few passes: only to see it run"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="train scikit-learn's models again instead of reusing them"
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers: one or more, found {options.workers}")
    if options.seed < 0:
        parser.error(f"--seed: zero or more, found {options.seed}")
    if options.quick:
        # Few rows are other data: kept apart, neither replaces the other.
        options.output = options.output / "quick"
    return options


def train_all(prepared: Prepared, settings: Settings, n_workers: int, seed: int) -> list[Trained]:
    """Train by each method in turn on one cluster of worker processes on the loopback address."""
    from distributed import Client, LocalCluster

    # Dask sets its own loggers to INFO when it is imported.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    say(f"Starting a Dask cluster of {n_workers} worker processes ...")
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # Any free port: 8787 may be another cluster's.
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        say(f"Dashboard while it runs: {client.dashboard_link}")
        return [train_one(run, prepared, client, seed) for run in runs(len(prepared.columns.names), settings)]


def train_one(run: Run, prepared: Prepared, client: Client, seed: int) -> Trained:
    """Train one network by one method, save it, and score it on the held-out flights."""
    say(f"\n{run.name}")
    train, validation, test = (db.ZarrDataset(path) for path in (prepared.train, prepared.validation, prepared.test))
    result = db.train(run.network, train, run.method, client=client, validation=validation, seed=seed)
    saved = prepared.folder / "models" / f"{run.file_name}.zarr"
    if saved.exists():
        shutil.rmtree(saved)  # of an earlier call
    saved.parent.mkdir(parents=True, exist_ok=True)
    result.save(saved)
    outcome = Outcome(
        method=run.name,
        seconds=result.seconds,
        passes=result.passes,
        training_loss=mean_log_loss(result, train),
        validation_loss=result.validation["loss"],
        held_out=score(*predicted(result, test)),
        stopped=str(db.Stop(result.stop.reason)),
    )
    return Trained(outcome, *curves(run.name, result), saved)


def predicted(result: db.TrainingResult, dataset: db.ZarrDataset) -> tuple[np.ndarray, np.ndarray]:
    """Give the probabilities of being late of all rows, ``(n_rows,)``, and their targets; a part is read at a time."""
    parts = []
    for start in range(0, dataset.n_rows, READ_ROWS):
        inputs, targets = dataset.read(start, min(start + READ_ROWS, dataset.n_rows))
        parts.append((np.asarray(result.predict(inputs)).reshape(len(inputs)), targets))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def mean_log_loss(result: db.TrainingResult, dataset: db.ZarrDataset) -> float:
    """Give the log loss over all rows, without the penalty that the method adds."""
    return log_loss(*predicted(result, dataset))


def curves(name: str, result: db.TrainingResult) -> tuple[Curve, Curve]:
    """Give the training objective and the validation log loss as the run went on."""
    training, validation = Curve(name, []), Curve(name, [])
    for event in result.history.events:
        if isinstance(event, IterationEnded | DownpourProgressed):
            training.points.append((event.seconds, event.passes, event.loss))
        elif isinstance(event, Validated):
            validation.points.append((event.seconds, event.passes, event.loss))
    return training, validation


def write_results(folder: Path, table: str, outcomes: Sequence[Outcome]) -> None:
    """Keep the table, for people and for programs."""
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    text = json.dumps([outcome.to_config() for outcome in outcomes], indent=1)
    (folder / "table.json").write_text(text, encoding="utf-8")


def describe(prepared: Prepared, seconds: float) -> str:
    """Say in two lines what there is to train on."""
    rows, n_columns = prepared.rows, len(prepared.columns.names)
    how = "found, made by an earlier call" if prepared.reused else f"written in {seconds:.1f} s"
    return (
        f"{rows['train']:,} flights of January to October to train on and {rows['validation']:,} to validate on, "
        f"{rows['test']:,} of November and December held out, {n_columns} columns;\n"
        f"{rows['left_out']:,} flights without a recorded arrival delay left out. Zarr stores {how}: {prepared.folder}"
    )


def describe_files(folder: Path, trained: Sequence[Trained]) -> str:
    """Say where everything is."""
    lines = [f"Learning curves     {folder / 'curves.png'}", f"Table               {folder / 'table.txt'}, table.json"]
    lines += [f"Trained parameters  {one.saved}" for one in trained]
    return "\n".join(lines)


def say(text: str) -> None:
    """Print at once, also where the output is a file."""
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("Interrupted; what was prepared is kept for the next call.")
        sys.exit(130)
    except db.DaskBeliefError as error:
        sys.exit(f"{type(error).__name__}: {error}")
