"""What is on disk is whole and one's own, whatever happened to the process that wrote it."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from asked import MODELS, RECORDS, SIGNALS, pool_of, read, same
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from small import CLASSES, FEATURES, same_bits, some_records

import vestige
from vestige import reading as reading_module
from vestige.errors import DamagedFile, StoreError
from vestige.models import EstimatorModel, TorchModel
from vestige.pool import Pool
from vestige.reading import Block, OneByOne
from vestige.records import Records
from vestige.signals import cross_entropy_loss
from vestige.training import (
    MLP,
    EarlyStopping,
    EstimatorRecipe,
    FunctionRecipe,
    Store,
    TorchRecipe,
    half_and_half,
    planner,
    train_many,
)
from vestige.training import many as many_module
from vestige.training import store as store_module
from vestige.training.engines import Local
from vestige.training.store import StoredSignals, write_atomically

STACKED = TorchRecipe(MLP(FEATURES, CLASSES, hidden=(5,)), epochs=2, batch_size=8)
ALONE = replace(STACKED, early_stopping=EarlyStopping(5, 0.2))
N = 40


def toy() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    records = some_records(N)
    return records.x, records.y


def member_table() -> NDArray[np.bool_]:
    return half_and_half(6, N, 0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planner.WIDEST, "cpu", 2)


def trained(
    folder: Path | None, recipe: Any = STACKED, **changed: Any
) -> tuple[Pool[Any], list[str]]:
    """The pool, and what the store told."""
    told: list[str] = []
    given: dict[str, Any] = {"records": some_records(N), "member": member_table(), "seed": 0}
    given |= {"engine": Local(1), **changed}
    store = None if folder is None else Store(folder, told.append)
    return train_many(recipe, store=store, **given), told


def reused(pool: Pool[Any]) -> int:
    count: int = pool.provenance["n_reused"]
    assert count + pool.provenance["n_trained"] == len(pool.models)
    return count


def same_models(a: Pool[Any], b: Pool[Any]) -> bool:
    return all(same_bits(x.net, y.net) for x, y in zip(a.models, b.models, strict=True))


def files(folder: Path, pattern: str = "*.safetensors") -> list[Path]:
    return sorted(folder.rglob(pattern))


def writing(content: bytes) -> Callable[[Path], None]:
    def write(part: Path) -> None:
        part.write_bytes(content)

    return write


# --- reuse -------------------------------------------------------------------------------------


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    first, _ = trained(tmp_path)
    again, told = trained(tmp_path)
    assert (reused(first), reused(again), told) == (0, 6, [])
    assert same_models(first, again) and same_models(again, trained(None)[0])
    assert again.provenance["seconds"] == first.provenance["seconds"] > 0
    assert not files(tmp_path, "*.part")


def flipped(records: Records) -> Records:
    y = records.y.copy()
    y[0] = (y[0] + 1) % CLASSES
    return Records(records.ids, records.x, y)


OTHERS: dict[str, dict[str, Any]] = {
    "recipe": {"recipe": replace(STACKED, lr=0.11)},
    "build": {"recipe": replace(STACKED, build=MLP(FEATURES, CLASSES, hidden=(6,)))},
    "path": {"recipe": ALONE},
    "label": {"records": flipped(some_records(N))},
    "inputs": {"records": some_records(N, seed=1)},
    "number of classes": {"records": replace(some_records(N), classes=("a", "b", "c", "d"))},
    "seed": {"seed": 1},
    "table": {"member": half_and_half(6, N, 1)},
    "fewer models": {"member": half_and_half(4, N, 0)},
    "objective": {"objective": lambda net, batch: (net(batch.x) ** 2).mean()},
}


def test_nothing_made_otherwise_is_reused(tmp_path: Path) -> None:
    keys = [trained(tmp_path)[0].provenance["key"]]
    for changed in OTHERS.values():
        pool, told = trained(tmp_path, **changed)
        assert reused(pool) == 0 and told == []
        keys.append(pool.provenance["key"])
    assert len(set(keys)) == len(keys)
    assert reused(trained(tmp_path)[0]) == 6


def test_other_code_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path)
    monkeypatch.setattr(many_module, "code_version", lambda: "another")
    assert reused(trained(tmp_path)[0]) == 0


# --- damage ------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "is damaged (not what was written); made again"),
    "emptied": (lambda path: path.write_bytes(b""), "is damaged (not what was written)"),
    "one bit": (flip, "is damaged (not what was written); made again"),
    "deleted": (Path.unlink, "is gone from"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("recipe", [STACKED, ALONE], ids=["stacked", "alone"])
def test_damage_is_named_and_made_again(tmp_path: Path, damage: str, recipe: TorchRecipe) -> None:
    first, _ = trained(tmp_path, recipe)
    undisturbed = [model.net for model in first.models]
    do, message = DAMAGE[damage]
    do(files(tmp_path)[3])
    again, told = trained(tmp_path, recipe)
    assert reused(again) == 5
    assert len(told) == 1 and message in told[0] and "model-00003.safetensors" in told[0]
    assert all(same_bits(a, m.net) for a, m in zip(undisturbed, again.models, strict=True))
    assert trained(tmp_path, recipe)[1] == []


def test_a_file_of_another_recipe_is_named_and_made_again(tmp_path: Path) -> None:
    trained(tmp_path, replace(STACKED, build=MLP(FEATURES, CLASSES, hidden=(7,))))
    foreign = files(tmp_path)[2].read_bytes()
    mine, _ = trained(tmp_path)
    run = tmp_path / mine.provenance["key"]
    (run / "model-00002.safetensors").write_bytes(foreign)
    again, told = trained(tmp_path)
    assert reused(again) == 5 and "model-00002.safetensors" in told[0] and len(told) == 1
    assert same_models(again, trained(None)[0])


def test_a_file_that_the_manifest_does_not_name_is_not_used(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "manifest.sqlite").unlink()
    again, told = trained(tmp_path)
    assert reused(again) == 0 and len(told) == 6
    assert all("is not in the manifest" in text for text in told)
    assert same_models(again, trained(None)[0])


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)


def overwrite_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))


def another_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE files (name TEXT)")
    connection.close()


@pytest.mark.parametrize("damage", [overwrite_header, overwrite_pages, another_table])
def test_a_damaged_manifest_is_set_aside(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    first, _ = trained(tmp_path)
    damage(tmp_path / "manifest.sqlite")
    (tmp_path / "manifest.sqlite-journal").write_bytes(b"left behind")
    again, told = trained(tmp_path)
    assert reused(again) == 0 and "manifest.sqlite is damaged and was set aside" in told[0]
    assert all("\n" not in text for text in told)
    assert (tmp_path / "manifest.damaged").exists()
    assert same_models(first, again)
    assert trained(tmp_path)[1] == []


def test_a_manifest_cut_short_costs_only_what_it_lost(tmp_path: Path) -> None:
    first, _ = trained(tmp_path)
    truncate(tmp_path / "manifest.sqlite")
    again, told = trained(tmp_path)
    assert same_models(first, again) and told
    assert trained(tmp_path)[1] == []


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x7F  # a weight, not the header: the file is read without complaint
    path.write_bytes(bytes(data))


AFTERWARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one byte": (altered, "as it was written, but it was altered since; run the same command"),
    "truncated": (truncate, "as it was written, but it was altered since; run the same command"),
    "deleted": (Path.unlink, "but No such file or directory; run the same command again"),
}


@pytest.mark.parametrize("damage", AFTERWARDS)
def test_a_file_damaged_after_it_was_found_is_one_sentence(tmp_path: Path, damage: str) -> None:
    trained(tmp_path)
    pool, _ = trained(tmp_path)  # models just trained are still in memory, found ones are not
    do, message = AFTERWARDS[damage]
    do(files(tmp_path)[3])
    for use in (lambda: pool.models[3], lambda: pickle.dumps(pool.models[2:])):
        with pytest.raises(DamagedFile, match=message) as caught:
            use()
        assert "model-00003.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert same_bits(pool.models[2].net, trained(None)[0].models[2].net)


def test_a_file_that_another_process_made_again_is_read(tmp_path: Path) -> None:
    recipe = EstimatorRecipe(LogisticRegression())
    trained(tmp_path, recipe)
    pool, _ = trained(tmp_path, recipe)
    path = files(tmp_path, "*.skops")[0]
    # skops notes the time, so that the same model in another process is other bytes
    other = recipe.dumps(EstimatorModel(LogisticRegression(C=2.0).fit(*toy())))
    Store(tmp_path).save(path.parent.name, path.name, writing(other))
    assert pool.models[0].estimator.C == 2.0


def test_a_manifest_that_another_process_set_aside_is_not_set_aside_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).save("run", "one.bin", writing(b"1"))
    overwrite_header(tmp_path / "manifest.sqlite")
    whole, told = Store._is_sound, [""]

    def slow(store: Store) -> bool:
        sound = whole(store)
        if not sound:  # by now another process has seen the damage too, and is quicker
            monkeypatch.setattr(Store, "_is_sound", whole)
            Store(tmp_path, told.append).save("run", "two.bin", writing(b"2"))
        return sound

    monkeypatch.setattr(Store, "_is_sound", slow)
    store = Store(tmp_path, told.append)
    assert store.find("run", "two.bin") is not None
    assert len(told) == 2 and "manifest.sqlite is damaged and was set aside" in told[1]


def test_one_process_at_a_time_mends_a_manifest(tmp_path: Path) -> None:
    Store(tmp_path)
    overwrite_header(tmp_path / "manifest.sqlite")
    told: list[str] = []
    opening = [threading.Thread(target=Store, args=(tmp_path, told.append)) for _ in range(4)]
    with store_module._one_at_a_time(tmp_path / "manifest.lock"):
        for thread in opening:
            thread.start()
        time.sleep(0.1)
        assert not told and not (tmp_path / "manifest.damaged").exists()
    for thread in opening:
        thread.join(30)
    assert len(told) == 1 and (tmp_path / "manifest.damaged").exists()


@pytest.mark.parametrize("locks", ["no fcntl", "refused"])
def test_a_damaged_manifest_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fake = SimpleNamespace(flock=flock, LOCK_EX=2) if locks == "refused" else None
    monkeypatch.setitem(sys.modules, "fcntl", fake)
    Store(tmp_path)
    overwrite_header(tmp_path / "manifest.sqlite")
    told: list[str] = []
    Store(tmp_path, told.append)
    assert len(told) == 1
    Store(tmp_path)


def test_a_manifest_that_another_process_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "manifest.sqlite").rename(tmp_path / "manifest.damaged")
    store.save("run", "one.bin", writing(b"1"))
    assert store.find("run", "one.bin") is not None and store.seconds("run") == 0


# --- the disk ----------------------------------------------------------------------------------


@contextmanager
def failing_after(n: int, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    calls = iter(range(10**6))
    whole = os.fsync

    def fsync(file: int) -> None:
        if next(calls) >= n:
            raise OSError(number, os.strerror(number))
        whole(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("recipe", [STACKED, ALONE], ids=["stacked", "alone"])
def test_a_full_disk_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, recipe: TorchRecipe
) -> None:
    with failing_after(3, number, monkeypatch), pytest.raises(StoreError) as caught:
        trained(tmp_path, recipe)
    said = str(caught.value)
    assert ("no space is left there" in said) == (number != errno.EIO)
    assert "what was finished is kept" in said and "\n" not in said
    assert not files(tmp_path, "*.part") and len(files(tmp_path)) == 3
    again, told = trained(tmp_path, recipe)
    assert reused(again) == 3 and told == []
    assert same_models(again, trained(None, recipe)[0])


def test_a_disk_that_fills_up_while_a_model_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match="no space is left there"):
            trained(tmp_path)
    assert reused(trained(tmp_path)[0]) == 0


def test_a_manifest_that_cannot_grow(tmp_path: Path) -> None:
    told: list[str] = []
    store = Store(tmp_path, told.append)
    with sqlite3.connect(tmp_path / "manifest.sqlite") as connection:
        connection.execute(
            "CREATE TRIGGER t BEFORE INSERT ON files BEGIN SELECT RAISE(ABORT, 'x'); END"
        )
    connection.close()
    with pytest.raises(StoreError, match="what was finished is kept"):
        store.save("run", "one.bin", writing(b"1"))
    assert store.find("run", "one.bin") is None
    assert len(told) == 1 and "one.bin is not in the manifest" in told[0]
    assert not files(tmp_path, "*.part")


def test_a_name_with_full_in_it_is_not_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "fullmoon").write_text("a file, not a folder")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "fullmoon")
    assert "no space" not in str(caught.value)


@pytest.mark.parametrize("place", ["/proc/vestige", "/dev/null/store"])
def test_where_nothing_can_be_written_is_one_sentence(place: str) -> None:
    with pytest.raises(StoreError, match="expected to write") as caught:
        Store(place)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    trained(tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o555)
    try:
        assert reused(trained(tmp_path)[0]) == 6
        with pytest.raises(StoreError, match="expected to write"):
            trained(tmp_path, seed=1)
    finally:
        for path in (tmp_path, *tmp_path.rglob("*")):
            path.chmod(0o755)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "one.bin", interrupted)
    assert not list(tmp_path.iterdir())
    write_atomically(tmp_path / "one.bin", writing(b"whole"))
    assert [p.name for p in tmp_path.iterdir()] == ["one.bin"]


def test_half_written_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    trained(tmp_path)
    run = files(tmp_path)[0].parent
    host = store_module._host()
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {
        "dead": f"model-00009.safetensors.{host}.{dead.pid}.1.part",
        "alive": f"model-00009.safetensors.{host}.{os.getpid()}.1.part",
        "elsewhere": f"model-00009.safetensors.another-host.{dead.pid}.1.part",
        "strange": "x.part",
    }
    for name in names.values():
        (run / name).write_bytes(b"half")
    Store(tmp_path)
    assert {p.name for p in run.glob("*.part")} == set(names.values()) - {names["dead"]}


# --- two at once -------------------------------------------------------------------------------


def test_the_manifest_names_the_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A renames and is held up; B renames and enters; A enters: A's digest beside B's file,
    # unless renaming and entering are one.
    renamed, may_go_on = threading.Event(), threading.Event()
    whole = os.replace

    def slow(source: Any, target: Any) -> None:
        whole(source, target)
        if threading.current_thread() is held:
            renamed.set()
            may_go_on.wait(0.5)

    def save(content: bytes) -> None:
        Store(tmp_path).save("run", "one.bin", writing(content))

    monkeypatch.setattr(os, "replace", slow)
    held = threading.Thread(target=save, args=(b"A",))
    held.start()
    assert renamed.wait(30)
    save(b"B")
    may_go_on.set()
    held.join()
    told: list[str] = []
    found = Store(tmp_path, told.append).find("run", "one.bin")
    assert told == [] and found is not None and found.read_bytes() == b"B"


SCRIPT = '''
import os, signal, sys, time
from dataclasses import replace
from io import FileIO
from pathlib import Path
import numpy as np
from sklearn.linear_model import LogisticRegression
from vestige.records import Records
from vestige.training import *
from vestige.training import planner, store
from vestige.training.engines import Local

folder, kind, end = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
planner.WIDEST["cpu"] = 2
data = np.load(sys.argv[4])
records = Records(data["ids"], data["x"], data["y"])
stacked = TorchRecipe(MLP(6, 3, hidden=(5,)), epochs=2, batch_size=8)
recipes = {
    "stacked": stacked,
    "alone": replace(stacked, early_stopping=EarlyStopping(5, 0.2)),
    "estimator": EstimatorRecipe(LogisticRegression()),
}
syncs = iter(range(1000))

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(label, done, total):
    if end == "between" and done >= 2:
        die()

if end == "writing":
    store.os.fsync = lambda file: die() if next(syncs) == 3 else None
if end == "together":
    while not (folder / "go").exists():
        time.sleep(0.001)
kept = Store(folder, lambda text: print(text, flush=True))
for name in kind.split("+"):
    train_many(
        recipes[name], records, data["member"], seed=0, store=kept, progress=progress,
        engine=Local(1),
    )
print("done", flush=True)
'''  # fmt: skip


def started(folder: Path, kind: str, end: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    data, script = folder.parent / "data.npz", folder.parent / "script.py"
    records = some_records(N)
    if not data.exists():
        np.savez(data, ids=records.ids, x=records.x, y=records.y, member=member_table())
        script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), kind, end, str(data)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(vestige.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_last_bit(tmp_path: Path) -> None:
    runs = [
        (STACKED, 3, started(tmp_path / "writing", "stacked", "writing")),
        (ALONE, 2, started(tmp_path / "between", "alone", "between")),
    ]
    for recipe, finished, process in runs:
        said = process.communicate(timeout=300)[0]
        folder = tmp_path / ("writing" if recipe is STACKED else "between")
        assert process.returncode == -signal.SIGKILL, said
        assert len(files(folder)) == finished
        assert len(files(folder, "*.part")) == (recipe is STACKED)
        again, told = trained(folder, recipe)
        assert reused(again) == finished and told == []
        assert same_models(again, trained(None, recipe)[0])
        assert not files(folder, "*.part")


@pytest.mark.slow
def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    both = [started(folder, "stacked+estimator", "together") for _ in range(2)]
    (folder / "go").touch()
    for process in both:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0 and said.endswith("done\n"), said
    for recipe in (STACKED, EstimatorRecipe(LogisticRegression())):
        pool, told = trained(folder, recipe)
        assert reused(pool) == 6 and told == []
        expected, x = trained(None, recipe)[0], some_records(N).x
        for a, b in zip(pool.models, expected.models, strict=True):
            assert np.array_equal(a.log_probabilities(x), b.log_probabilities(x))
    assert not files(folder, "*.part")


# --- signals -----------------------------------------------------------------------------------


def test_signals_are_kept_and_never_those_of_other_models(tmp_path: Path) -> None:
    records = some_records(N)
    pool, _ = trained(tmp_path)
    first = pool.signals(cross_entropy_loss, records)
    again, _ = trained(tmp_path)
    assert isinstance(again.cache, StoredSignals)
    for path in files(tmp_path):
        path.unlink()  # the models are not asked again
    kept = again.signals(cross_entropy_loss, records)
    assert np.array_equal(kept, first) and not kept.flags.writeable
    other = trained(tmp_path, seed=1)[0].signals(cross_entropy_loss, records)
    assert not np.array_equal(other, first)


def unrepeatable(x: NDArray[Any], y: NDArray[Any], seed: int) -> Any:
    """Training that ignores its seed: made again, it is another model."""
    COUNT.append(0.0)
    return LogisticRegression(C=10.0 ** -len(COUNT)).fit(x, y)


COUNT: list[float] = []


def test_signals_of_models_that_were_made_again_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FunctionRecipe, "key", lambda self: "always the same")
    records, recipe = some_records(N), FunctionRecipe(unrepeatable)
    before = trained(tmp_path, recipe)[0].signals(cross_entropy_loss, records)
    truncate(files(tmp_path, "*.skops")[0])
    pool, _ = trained(tmp_path, recipe)
    after = pool.signals(cross_entropy_loss, records)
    fresh = cross_entropy_loss(pool.models[0].log_probabilities(records.x), records.y)
    assert np.array_equal(after[0], fresh) and not np.array_equal(after[0], before[0])
    assert np.array_equal(after[1:], before[1:])


def test_a_signals_file_is_written_in_place_with_few_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    whole = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (syncs.append(file), whole(file)))
    pool, notes, told = pool_of(tmp_path)
    for _ in range(2):  # the second time nothing is written
        values = pool.read(SIGNALS, pool.records)
        assert len(syncs) == 2 and len(files(tmp_path, "*.npy")) == 2 and told == []
    assert same(values, read()[0]) and notes == list(range(MODELS))
    for path in files(tmp_path, "*.npy"):
        assert any(np.array_equal(np.load(path), signal) for signal in values)
    assert same(read(tmp_path)[0], values) and read(tmp_path)[1:] == ([], [])
    assert not values[0].flags.writeable


def test_a_signal_that_two_processes_began_has_the_blocks_of_both(tmp_path: Path) -> None:
    told: list[str] = []
    caches = [StoredSignals(Store(tmp_path, told.append), "run") for _ in range(2)]
    begun = [cache.kept("key", 2, 4) for cache in caches]
    for k, (cache, kept) in enumerate(zip(caches, begun, strict=True)):
        kept.put(Block(k, k + 1, 0, 4), np.full((1, 4), k + 1.0))
        cache.commit()
    kept = StoredSignals(Store(tmp_path, told.append), "run").kept("key", 2, 4)
    assert kept.is_whole() and told == []
    assert np.array_equal(kept.values(), [[1.0] * 4, [2.0] * 4])


@dataclass(frozen=True)
class Wide(OneByOne):
    """So many models make a block, and nothing in the key says so."""

    wide: int = 1

    def width(self, models: Any) -> tuple[int, int]:
        return self.wide, 1


def test_interrupted_passes_of_other_cuts_do_not_add_up_to_a_whole(tmp_path: Path) -> None:
    def interrupted(blocks: int, wide: int) -> None:
        pool, _, told = pool_of(tmp_path)
        pool = replace(pool, asker=Wide(wide))
        calls = iter(range(1000))

        def progress(label: str, done: int, total: int) -> None:
            if next(calls) == blocks:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pool.read(SIGNALS, pool.records, progress=progress)
        assert told == []

    interrupted(MODELS - 4, wide=1)
    interrupted(2, wide=2)  # four of the same again
    values, _, told = read(tmp_path)
    assert told == [] and same(values, read()[0])


def test_what_is_stored_is_of_the_models_of_its_run(tmp_path: Path) -> None:
    pool, _ = trained(tmp_path)
    both = pool.signals(cross_entropy_loss, pool.records)
    for part in (slice(0, 2), slice(2, 4)):
        some = replace(pool, models=pool.models[part], member=pool.member[part])
        assert np.array_equal(some.signals(cross_entropy_loss, pool.records), both[part])
    assert len(files(tmp_path, "signal-*.npy")) == 1
    assert replace(pool, provenance={}).cache is pool.cache


def test_what_a_disk_takes_in_parts_is_written_wholly(tmp_path: Path) -> None:
    class Reluctant(FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[:3])

    (tmp_path / "one").write_bytes(b"0123456789")
    with Reluctant(tmp_path / "one", "r+b") as file:
        store_module._write_at(file, 2, b"abcdefg")
    assert (tmp_path / "one").read_bytes() == b"01abcdefg9"


def test_a_large_signal_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LARGEST_IN_MEMORY", 8 * MODELS * RECORDS)
    for _ in range(2):
        values, _, told = read(tmp_path)
        assert told == [] and same(values, read()[0])
        assert [isinstance(signal.base, np.memmap) for signal in values] == [False, True]
        assert not values[1].flags.writeable and values[1].dtype == np.float64


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


BROKEN: dict[str, tuple[Callable[[Path], Any], str, list[int]]] = {
    "one bit": (flip, "is damaged (not what was written) in 1 of 10 blocks; made again", [4]),
    "truncated": (truncate, "is damaged (not what was written) in 1 of 10 blocks", [9]),
    "emptied": (lambda path: path.write_bytes(b""), "in 10 of 10 blocks", list(range(10))),
    "deleted": (Path.unlink, "is gone from", list(range(10))),
    "no header": (lambda path: overwrite(path, 0, b"\0" * 90), "10 of 10", list(range(10))),
    "another's header": (
        lambda path: overwrite(path, 0, store_module._header((MODELS, RECORDS, 7))),
        "in 10 of 10 blocks",
        list(range(10)),
    ),
    "a huge header": (
        lambda path: overwrite(path, 0, store_module._header((MODELS, RECORDS, 10**12))),
        "in 10 of 10 blocks",
        list(range(10)),
    ),
}


@pytest.mark.parametrize("largest", [2**20, 0], ids=["memory", "mapped"])
@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_signals_are_named_and_only_they_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, largest: int
) -> None:
    monkeypatch.setattr(store_module, "LARGEST_IN_MEMORY", largest)
    read(tmp_path)
    do, message, lost = BROKEN[damage]
    broken = files(tmp_path, "signal-*.npy")[0]
    do(broken)
    values, notes, told = read(tmp_path)
    assert notes == lost and same(values, read()[0])
    assert len(told) == 1 and message in told[0] and broken.name in told[0]
    values, notes, told = read(tmp_path)
    assert (notes, told) == ([], []) and same(values, read()[0])


def test_a_file_of_another_signal_is_not_used(tmp_path: Path) -> None:
    read(tmp_path)
    one, other = files(tmp_path, "signal-*.npy")
    one.write_bytes(other.read_bytes())
    values, _, told = read(tmp_path)
    assert same(values, read()[0]) and "in 10 of 10 blocks" in told[0] and len(told) == 1


def test_what_the_manifest_does_not_name_is_not_used(tmp_path: Path) -> None:
    read(tmp_path)
    for path in files(tmp_path, "signal-*.npy"):
        overwrite(path, 200, b"\1" * 64)
    Store(tmp_path).forget_signals("run")
    values, notes, told = read(tmp_path)
    assert same(values, read()[0]) and len(notes) == MODELS and told == []


def test_a_mapped_signal_whose_file_was_replaced_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LARGEST_IN_MEMORY", 0)
    pool, _, _ = pool_of(tmp_path)

    def progress(label: str, done: int, total: int) -> None:
        if done == 4:
            for path in files(tmp_path, "signal-*.npy"):
                path.rename(path.with_suffix(".old"))
                path.write_bytes(path.with_suffix(".old").read_bytes())

    with pytest.raises(StoreError, match="another process has replaced it; run the same"):
        pool.read(SIGNALS, pool.records, progress=progress)


SIGNALS_SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from asked import Asked, pool_of, read
from vestige import reading

folder, end = Path(sys.argv[1]), sys.argv[2]
reading.COMMIT_EVERY = 0.0
if end == "killed":
    whole = Asked.log_probabilities
    def log_probabilities(self, x):
        if self._k == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, x)
    Asked.log_probabilities = log_probabilities
if end == "together":
    pool_of(folder)
    while not (folder / "go").exists():
        time.sleep(0.001)
values, notes, told = read(folder, 3000)
print(told, len(notes), float(values[1].sum()), flush=True)
"""


def reading_signals(folder: Path, end: str) -> subprocess.Popen[str]:
    paths = [str(Path(vestige.__file__).parents[1]), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, "-c", SIGNALS_SCRIPT, str(folder), end],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_was(tmp_path: Path) -> None:
    process = reading_signals(tmp_path, "killed")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == -signal.SIGKILL, said
    values, notes, told = read(tmp_path, 3000)
    assert notes == [6, 7, 8, 9] and told == [] and same(values, read(n=3000)[0])


@pytest.mark.slow
@pytest.mark.parametrize("largest", [2**28, 0], ids=["memory", "mapped"])
def test_two_processes_read_the_same_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(store_module, "LARGEST_IN_MEMORY", largest)
    both = [reading_signals(tmp_path, "together") for _ in range(2)]
    (tmp_path / "go").touch()
    values = read(n=3000)[0]
    for process in both:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0 and said.startswith("[] "), said
        assert float(said.split()[-1]) == float(values[1].sum())
    again, notes, told = read(tmp_path, 3000)
    assert (notes, told) == ([], []) and same(again, values)


# --- a disk that is really small ---------------------------------------------------------------


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes at the folder; what is yielded gives it another size."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")

    def resize(size: int) -> None:
        options = ["-o", f"remount,size={size}", str(folder)]
        subprocess.run(["mount", *options], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("recipe", "size"), [(STACKED, 2**15), (EstimatorRecipe(LogisticRegression()), 2**16)]
)
def test_models_on_a_disk_that_is_full(tmp_path: Path, recipe: Any, size: int) -> None:
    with disk(tmp_path / "small", size) as resize:
        with pytest.raises(StoreError) as caught:
            trained(tmp_path / "small", recipe)
        assert "no space is left there; what was finished is kept" in str(caught.value)
        finished = len(files(tmp_path / "small", f"*{recipe.suffix}"))
        resize(2**22)
        again, told = trained(tmp_path / "small", recipe)
        assert 1 <= reused(again) <= finished < 6
        assert len(told) == finished - reused(again) <= 1
        x = some_records(N).x
        for a, b in zip(again.models, trained(None, recipe)[0].models, strict=True):
            assert np.array_equal(a.log_probabilities(x), b.log_probabilities(x))


def test_signals_on_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "COMMIT_EVERY", 0.0)
    n = 3000  # 24 kB a model for the loss, 72 kB for the answers
    for largest in (2**28, 0):
        monkeypatch.setattr(store_module, "LARGEST_IN_MEMORY", largest)
        with disk(tmp_path / f"small{largest}", 2**19) as resize:
            folder = tmp_path / f"small{largest}"
            with pytest.raises(StoreError) as caught:
                read(folder, n)
            assert "no space is left there; what was finished is kept" in str(caught.value)
            resize(2**22)
            values, notes, told = read(folder, n)
            assert told == [] and same(values, read(n=n)[0])
            assert notes == list(range(notes[0], MODELS)) and 2 <= notes[0] <= 5


def test_a_disk_without_room_for_a_manifest(tmp_path: Path) -> None:
    with disk(tmp_path / "small", 4096), pytest.raises(StoreError) as caught:
        Store(tmp_path / "small" / "store")
    assert "no space is left there" in str(caught.value) and "\n" not in str(caught.value)


# --- no pickles --------------------------------------------------------------------------------


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    estimators = (LogisticRegression(), RandomForestClassifier(3))
    for recipe in (STACKED, ALONE, *map(EstimatorRecipe, estimators)):
        trained(tmp_path, recipe)[0].signals(cross_entropy_loss, some_records(N))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {p.suffix for p in found} == {".safetensors", ".skops", ".npz", ".npy", ".sqlite"}
    for path in found:
        # a pickle of protocol 2 and above begins so
        assert path.read_bytes()[:1] != b"\x80", path
    for path in files(tmp_path, "*.npy"):
        assert np.load(path, allow_pickle=False).shape == (6, N)


def test_a_skops_file_that_names_foreign_code_is_not_loaded() -> None:
    from sklearn.preprocessing import FunctionTransformer

    from vestige.training.recipe import dump_estimator, load_estimator

    bad = dump_estimator(FunctionTransformer(os.system))
    with pytest.raises(DamagedFile, match="expected scikit-learn objects.*was not loaded"):
        load_estimator(bad, "bad.skops")
    # not even where the recipe itself holds such a function: Python's own are never trusted
    recipe = EstimatorRecipe(LogisticRegression())
    for data in (bad, b"PK no zip"):
        with pytest.raises(DamagedFile):
            recipe.loads(data, "model.skops", CLASSES)


def test_weights_of_another_architecture_are_not_read() -> None:
    wide = replace(STACKED, build=MLP(FEATURES, CLASSES, hidden=(9,)))
    data = STACKED.dumps(TorchModel(STACKED.build()))
    with pytest.raises(DamagedFile, match="written for another architecture"):
        wide.loads(data, "one.safetensors", CLASSES)
