"""200 damaged checkpoints, by seed: each is refused, or is read exactly as it was saved; never a wrong vector."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dask_belief.checkpoint import CheckpointStore
from dask_belief.errors import CheckpointError, MissingStoreError
from dask_belief.seeds import stream
from tests.checkpoint.saved_runs import check, history_of, save, state_of, write_vector

N_DAMAGED = 200
NUMBERS = (1, 2)
SEED, OTHER_SEED = 0, 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints 1 and 2 of a run, and those of another."""
    folders = []
    for seed in (SEED, OTHER_SEED):
        folders.append(tmp_path_factory.mktemp(f"run-{seed}"))
        store = CheckpointStore(folders[-1])
        store.prepare()
        for number in NUMBERS:
            save(store, number, seed)
    return folders[0], folders[1]


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run's folder, to be harmed."""
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


Damage = Callable[[Path, Path, np.random.Generator], None]


def flip_bits(folder: Path, other: Path, random: np.random.Generator) -> None:
    file = chosen(folder, random)
    data = bytearray(file.read_bytes())
    for _ in range(int(random.integers(1, 4))):
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    file.write_bytes(data)


def overwrite(folder: Path, other: Path, random: np.random.Generator) -> None:
    """A run of random bytes, or of zeros, as a disk that did not write them has."""
    file = chosen(folder, random)
    data = bytearray(file.read_bytes())
    start = int(random.integers(len(data)))
    stop = min(len(data), start + int(random.integers(1, 200)))
    data[start:stop] = bytes(stop - start) if random.random() < 0.5 else random.bytes(stop - start)
    file.write_bytes(data)


def cut(folder: Path, other: Path, random: np.random.Generator) -> None:
    file = chosen(folder, random)
    data = file.read_bytes()
    file.write_bytes(data[: int(random.integers(len(data)))])


def append(folder: Path, other: Path, random: np.random.Generator) -> None:
    file = chosen(folder, random)
    data = file.read_bytes()
    file.write_bytes(data + (data if random.random() < 0.3 else random.bytes(int(random.integers(1, 50)))))


def remove(folder: Path, other: Path, random: np.random.Generator) -> None:
    file = chosen(folder, random)
    if random.random() < 0.3 and file.parent != folder:
        shutil.rmtree(file.parent)
    else:
        file.unlink()


def swap(folder: Path, other: Path, random: np.random.Generator) -> None:
    """Two files of one kind, so that both look right."""
    first = chosen(folder, random)
    second = like(first, folder, random)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def replace(folder: Path, other: Path, random: np.random.Generator) -> None:
    """One to three files by those of another run: of the same name where it has one."""
    for _ in range(int(random.integers(1, 4))):
        file = chosen(folder, random)
        same = other / file.relative_to(folder)
        source = same if same.exists() and random.random() < 0.7 else like(other / file.name, other, random)
        file.write_bytes(source.read_bytes())


def rename(folder: Path, other: Path, random: np.random.Generator) -> None:
    """A manifest under the number of another, or a vector under another's name."""
    if random.random() < 0.4:
        kind = str(random.choice(["manifest", "history"]))
        number = int(random.choice([1, 2]))
        (folder / f"{kind}-00000{number}.json").rename(folder / f"{kind}-00000{number + 1}.json")
        return
    first, second = random.permutation(sorted((folder / "vectors").iterdir()))[:2]
    shutil.rmtree(second)
    first.rename(second)


def make_folder(folder: Path, other: Path, random: np.random.Generator) -> None:
    file = chosen(folder, random)
    file.unlink()
    file.mkdir()


def chosen(folder: Path, random: np.random.Generator) -> Path:
    """Any file, but half of the time one of the few that are not parts."""
    files = files_of(folder)
    if random.random() < 0.5:
        files = [file for file in files if file.parent == folder]
    return files[int(random.integers(len(files)))]


def like(file: Path, folder: Path, random: np.random.Generator) -> Path:
    kind = file.name.partition("-")[0]
    files = [each for each in files_of(folder) if each.name.startswith(kind) and each != file]
    return files[int(random.integers(len(files)))] if files else file


DAMAGES: list[Damage] = [flip_bits, overwrite, cut, append, remove, swap, replace, rename, make_folder]


def read_all(folder: Path) -> list[str]:
    """Read each checkpoint, the newest first; tell of each whether it was right or what was said."""
    store = CheckpointStore(folder)
    outcomes = []
    for load in (store.newest, lambda: store.load(1)):
        try:
            check(store, load(), SEED)
            outcomes.append("right")
        except (CheckpointError, MissingStoreError) as error:
            outcomes.append(str(error))
    return outcomes


def test_damaged_checkpoints_are_refused_or_right(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Any other exception, or a wrong vector, state, history or description, fails here."""
    run, other = runs
    outcomes: dict[str, list[str]] = {}
    for number in range(N_DAMAGED):
        damage = DAMAGES[number % len(DAMAGES)]
        folder = Path(shutil.copytree(run, tmp_path / str(number)))
        damage(folder, other, stream(29, "damage", number))
        try:
            outcomes.setdefault(damage.__name__, []).extend(read_all(folder))
        except Exception as error:
            error.add_note(f"in damaged checkpoint {number}, {damage.__name__}")
            raise
        shutil.rmtree(folder)
    assert sum(map(len, outcomes.values())) == 2 * N_DAMAGED
    for name, found in outcomes.items():
        # Each kind of damage does harm, and not to everything.
        assert 0 < found.count("right") < len(found), name


def test_damaged_checkpoint_can_be_resumed_from_what_is_left(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Wherever one of the two is right still, a run goes on from it in the same folder, and its next is right."""
    run, other = runs
    n_resumed = 0
    for number in range(0, N_DAMAGED, 5):
        folder = Path(shutil.copytree(run, tmp_path / str(number)))
        damages = DAMAGES[number % len(DAMAGES)]
        damages(folder, other, stream(31, "damage", number))
        newest, first = read_all(folder)
        if "right" in (newest, first):
            store = CheckpointStore(folder)
            last = store.numbers()[-1] if newest == "right" else 1
            store.prepare(resumed=last)
            check(store, store.load(last), SEED)
            save(store, last + 1)
            # The pair that all share may be what was harmed: it was just written again.
            check(store, store.newest(), SEED)
            n_resumed += 1
        shutil.rmtree(folder)
    assert n_resumed > 10


def test_newest_offers_the_one_before(run: Path) -> None:
    """It says what is wrong and does not go back by itself; the offer works."""
    (run / "manifest-000002.json").write_bytes(b"")
    store = CheckpointStore(run)
    written = store.load(1).written.replace("+", r"\+")
    message = (
        rf"checkpoint 2 at .*run is damaged: manifest-000002\.json is empty, cut.* The one before, 1, written {written}"
    )
    with pytest.raises(CheckpointError, match=message + r", can be tried: db\.resume\(path, number=1\)"):
        store.newest()
    check(store, store.load(1))


def test_damaged_part_offers_a_checkpoint_without_it(run: Path) -> None:
    """One that shares the damaged part is no help."""
    store = CheckpointStore(run)
    loaded = store.newest()
    for name, offer in (("x@2", "The one before, 1"), ("s@1", "There is no other")):
        [first, *_] = sorted((run / "vectors" / name).glob("0-*/c/0"))
        data = first.read_bytes()
        first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"checkpoint 2 .*values 0 to 40 of {name} are not those.*{offer}"):
            store.verify(loaded)
        first.write_bytes(data)
    store.verify(loaded)


def test_nothing_else_is_offered_when_all_are_damaged(run: Path) -> None:
    for number in NUMBERS:
        (run / f"history-00000{number}.json").unlink()
    with pytest.raises(CheckpointError, match=r"history-000002\.json cannot be read.*There is no other"):
        CheckpointStore(run).newest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "is not a manifest of dask_belief"),
        ("[]", "is not a manifest of dask_belief"),
        (
            '{"kind": "dask_belief_checkpoint", "format": 2, "version": "9.9"}',
            "has format 2, written by dask_belief 9.9",
        ),
        ('{"kind": "dask_belief_checkpoint", "format": 1}', "is not as it was written"),
        ('{"kind": NaN}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_each_wrong_manifest_has_its_word(run: Path, text: str, message: str) -> None:
    """Foreign, newer, incomplete and cut ones."""
    (run / "manifest-000002.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=f"checkpoint 2 .*{message}.*The one before, 1"):
        CheckpointStore(run).newest()


def test_manifest_under_another_number_is_refused(run: Path) -> None:
    shutil.copy(run / "manifest-000001.json", run / "manifest-000002.json")
    with pytest.raises(CheckpointError, match="is the manifest of checkpoint 1, under another name"):
        CheckpointStore(run).newest()


def test_manifest_of_another_run_is_refused(runs: tuple[Path, Path], run: Path) -> None:
    """Although it is whole, and of the same number: its history is another."""
    shutil.copy(runs[1] / "manifest-000002.json", run / "manifest-000002.json")
    with pytest.raises(CheckpointError, match=r"history-000002\.json is not the one"):
        CheckpointStore(run).newest()


def test_missing_or_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingStoreError, match="empty, or not there"):
            CheckpointStore(folder).newest()


def test_manifest_is_plain_json(run: Path) -> None:
    """State, description and events are found by their names, by anyone."""
    manifest = json.loads((run / "manifest-000002.json").read_text())
    assert manifest["state"] == state_of(2)
    assert (manifest["format"], manifest["number"], manifest["description"]["seed"]) == (1, 2, SEED)
    assert json.loads((run / manifest["history"]["path"]).read_text())["events"] == history_of(2)
    assert sorted(manifest["vectors"]) == ["g@2", "s@1", "state:sums@2", "x@2"]


def test_part_is_bound_to_its_place(tmp_path: Path) -> None:
    """The same values under another name, or at another place, have another digest."""
    store = CheckpointStore(tmp_path)
    [first, *_], [second, *_] = write_vector(store, "x@1"), write_vector(store, "x@1")
    assert first == second
    ones = np.ones(4, np.float32)
    parts = [store.write_part("x@1", 0, ones), store.write_part("x@1", 4, ones), store.write_part("x@2", 0, ones)]
    assert len({part.digest for part in parts}) == 3
    with pytest.raises(CheckpointError, match=r"values 4 to 8 of x@2 cannot be read, FileNotFoundError"):
        store.read_part("x@2", parts[1])
