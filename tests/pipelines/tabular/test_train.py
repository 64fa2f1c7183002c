"""The demo as a program: options, what it leaves, a second call, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dask_belief as db
from pipelines.tabular.evaluate import score
from pipelines.tabular.train import curves, main, parse

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--seed", "-1"], ["--workers", "two"], ["--fast"]])
def test_bad_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option out of range or unknown ends the program at once, by name."""
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_quick_rows_have_a_folder_of_their_own(tmp_path: Path) -> None:
    """The few rows of the quick form do not replace the full stores."""
    full, quick = parse(["--output", str(tmp_path)]), parse(["--output", str(tmp_path), "--quick"])
    assert full.output == tmp_path
    assert quick.output == tmp_path / "quick"


@pytest.mark.long
def test_demo_runs_from_end_to_end_and_again(tmp_path: Path) -> None:
    """The quick demo trains by both methods on worker processes and leaves what it says; a second call reuses it."""
    command = [sys.executable, "-W", "error", "-m", "pipelines.tabular.train", "--quick", "--output", str(tmp_path)]
    printed = []
    for _ in range(2):
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        printed.append(done.stdout)
    assert "Zarr stores written" in printed[0]
    assert "Zarr stores found" in printed[1]
    assert "* Kept from an earlier call" in printed[1]
    for text in ("http://127.0.0.1", "Sandblaster L-BFGS", "Downpour SGD", "9,430 flights", "Dashboard"):
        assert text in printed[0]
    folder = tmp_path / "quick"
    table = json.loads((folder / "table.json").read_text())
    assert len(table) == 6
    assert (folder / "curves.png").stat().st_size > 10_000
    for name, kept in zip(("logistic-sandblaster", "network-sandblaster", "network-downpour"), table[3:], strict=True):
        result = db.load_result(folder / "models" / f"{name}.zarr")
        store = db.ZarrDataset(folder / "test.zarr")
        inputs, targets = store.read(0, store.n_rows)
        found = score(result.predict(inputs)[:, 0], targets)
        assert found.auc == pytest.approx(kept["held_out"]["auc"], abs=1e-6)
        assert found.auc > 0.8
        assert all(curve.points for curve in curves(name, result))


def test_errors_of_the_package_end_the_program_in_one_line(tmp_path: Path) -> None:
    """What cannot be trained is told in one line, without a traceback, and the exit status says so."""
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "train.zarr").mkdir()
    (tmp_path / "quick" / "train.zarr" / "letters.txt").write_text("somebody's own")
    command = [sys.executable, "-m", "pipelines.tabular.train", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ArgumentError: ")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "quick" / "train.zarr" / "letters.txt").exists()


def test_main_is_a_function(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` names every option and ends with success."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--output", "--workers", "--seed", "--quick", "--fresh"))
