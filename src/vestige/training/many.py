"""A whole pool of models from a membership table.

Model k is trained on the records of row k, with a seed of its own, so that it does not depend on
which others are trained beside it. Stacks are cut at fixed places (every `CHUNK` models), so that
a resumed run computes what an undisturbed one computes, to the last bit.
"""

from __future__ import annotations

import hashlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from vestige.errors import DamagedFile, InvalidInput
from vestige.models import BlackBox
from vestige.pool import MemoryCache, Pool, SignalCache
from vestige.records import Records
from vestige.training.fingerprint import fingerprint
from vestige.training.fit import (
    Gradients,
    Objective,
    RecipeLoss,
    Resident,
    Streams,
    built,
    checked,
    fit,
    mean_gradients,
    one_thread,
)
from vestige.training.recipe import Recipe, TorchRecipe
from vestige.training.stacked import fit_stack, why_alone
from vestige.training.store import Store, StoredSignals, write_beside

__all__ = ["Progress", "half_and_half", "model_seed", "train_many"]

CHUNK = 32

LARGEST_KEPT = 256 * 2**20
"""Bytes of finished models that stay in memory, so that they are not read again at once."""

PROCESSES_PAY = 30.0
"""Seconds of training left above which worker processes earn the import that each begins with."""

Progress = Callable[[str, int, int], None]
Table = NDArray[np.bool_]


def quiet(label: str, done: int, total: int) -> None:
    """Progress that is not shown."""


def model_seed(seed: int, index: int) -> int:
    """The seed of one model of a pool, a 31-bit word."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index,))
    return int(sequence.generate_state(1)[0] >> 1)


def half_and_half(n_models: int, n_records: int, seed: int) -> Table:
    """Complementary halves: each record is in exactly one model of each pair.

    So each record has as many models trained with it as without (Carlini et al. 2022, sec. IV).
    The first pairs of a larger table are those of a smaller one.

    Returns:
        (n_models, n_records) bool.

    Raises:
        InvalidInput: an odd number of models, or fewer than two records.
    """
    if n_models % 2 or n_models < 2 or n_records < 2:
        raise InvalidInput(
            f"expected an even number of models and at least two records, got {n_models} models "
            f"and {n_records} records; ask for {max(2, n_models + n_models % 2)} models"
        )
    member = np.zeros((n_models, n_records), dtype=bool)
    for pair in range(n_models // 2):
        order = np.random.default_rng([seed, pair]).permutation(n_records)
        # of an odd number one record is in neither half: stacks want models of equal size
        half = n_records // 2
        member[2 * pair, order[:half]] = True
        member[2 * pair + 1, order[half : 2 * half]] = True
    return member


class _Models(Sequence[BlackBox]):
    """Stored models, read when asked for; some of them may still be in memory."""

    def __init__(
        self,
        recipe: Recipe,
        paths: Sequence[Path],
        n_classes: int,
        kept: Mapping[Path, BlackBox],
    ) -> None:
        self._recipe, self._paths, self._n_classes, self._kept = recipe, paths, n_classes, kept

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> BlackBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlackBox]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Models(self._recipe, self._paths[index], self._n_classes, self._kept)
        path = self._paths[index]
        return self._kept.get(path) or self._recipe.read(path, self._n_classes)


@dataclass(frozen=True)
class _Job:
    """Everything that `train_many` was asked, in one hand."""

    recipe: Recipe
    records: Records
    member: Table
    seed: int
    objective: Objective | None
    gradients: Gradients

    def rows(self, index: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.member[index])

    def alone(self, index: int) -> BlackBox:
        own, seed = self.records[self.rows(index)], model_seed(self.seed, index)
        own = Records(own.ids, own.x, own.y, own.columns, self._classes())
        if isinstance(self.recipe, TorchRecipe):
            return fit(
                self.recipe, own, seed=seed, objective=self.objective, gradients=self.gradients
            )
        return self.recipe.fit(own, seed)

    def _classes(self) -> tuple[str, ...]:
        # a half may lack a class: its models still answer for all of them
        return self.records.classes or tuple(str(c) for c in range(self.records.n_classes))

    def key(self, plan: str) -> str:
        """What decides every number of the pool: nothing stored under another key is used."""
        return fingerprint(
            [
                self.recipe.key(),
                self.records.digest(),
                self.records.n_classes,
                self.member,
                self.seed,
                fingerprint(self.objective),
                fingerprint(self.gradients),
                plan,
                code_version(),
            ]
        )[:24]


def code_version() -> str:
    """The versions, and the source of what trains: a change to either makes old models stale.

    This file is a part of it: a stack of another width rounds otherwise.
    """
    import sklearn

    digest = hashlib.sha256()
    for name in ("fit.py", "many.py", "networks.py", "recipe.py", "stacked.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    versions = [torch.__version__, sklearn.__version__, np.__version__, platform.machine()]
    return f"{digest.hexdigest()} {' '.join(versions)}"


def train_many(
    recipe: Recipe,
    records: Records,
    member: Table,
    *,
    seed: int,
    store: Store | None = None,
    progress: Progress = quiet,
    objective: Objective | None = None,
    gradients: Gradients = mean_gradients,
    workers: int | None = None,
) -> Pool[BlackBox]:
    """Train one model for each row of a membership table.

    Small torch models are trained as stacks where that is shown to give what training alone
    gives; others one by one, scikit-learn estimators in processes where that takes long. The
    pool's provenance says which, and why.

    Args:
        records: all records, in the order of the table's columns.
        member: (n_models, n_records) bool; row k is what model k is trained on.
        seed: model k's own seed is `model_seed(seed, k)`.
        store: where models are kept; a chunk is on disk before the next one starts, and what is
            found there under the same recipe, records, table, seed and code is not trained again.
        progress: called with a label, the number done and the total.
        workers: processes for recipes other than torch; by default one for each core, and none
            where the models are done before the processes would have started.

    Raises:
        InvalidInput: a table of another shape, a model without records, or training that
            diverged; with a store, a model that its stored file does not wholly describe.
        StoreError: the disk is full; what was finished is kept.
    """
    _check(records, member, seed)
    job = _Job(recipe, records, member, seed, objective, gradients)
    path, why = _plan(job)
    run = job.key(path)
    names = [f"model-{k:05d}{recipe.suffix}" for k in range(len(member))]
    missing = [store is None or store.find(run, name) is None for name in names]
    todo = [k for k, absent in enumerate(missing) if absent]
    started, done = time.perf_counter(), len(names) - len(todo)
    progress("models", done, len(names))
    if store is not None and todo:
        store.forget_signals(run)
    kept: dict[int, BlackBox] = {}
    size = 0
    for finished, seconds in _trained(job, path, todo, store, run, names, workers):
        for index, model in finished.items():
            if store is None:
                kept[index] = model
            elif missing[index] and model is not None:
                write = partial(_written, job, model, first=index == todo[0])
                size += store.save(run, names[index], write, seconds).stat().st_size
                if size <= LARGEST_KEPT:
                    kept[index] = model
            missing[index] = False
        progress("models", len(names) - sum(missing), len(names))
    provenance = {
        "path": path,
        "why": why,
        "n_models": len(names),
        "n_trained": len(todo),
        "n_reused": done,
        # what the models cost, not what this run paid: a resumed audit reports the same cost
        "seconds": time.perf_counter() - started if store is None else store.seconds(run),
        "key": run,
    }
    cache: SignalCache = MemoryCache() if store is None else StoredSignals(store, run)
    models: Sequence[BlackBox]
    if store is None:
        models = [kept[k] for k in range(len(names))]
    else:
        paths = [store.path(run, n) for n in names]
        still = {paths[k]: model for k, model in kept.items()}
        models = _Models(recipe, paths, records.n_classes, still)
    return Pool(models, records, member, cache, provenance)


def _check(records: Records, member: Table, seed: int) -> None:
    """Refuse what would fail only after hours of training."""
    if member.ndim != 2 or member.shape[1] != len(records) or member.dtype != np.bool_:
        raise InvalidInput(
            f"expected a boolean membership table of shape (n_models, {len(records)}), got "
            f"{member.dtype} of shape {member.shape}"
        )
    if not len(member):
        raise InvalidInput("expected a row for at least one model, got none")
    empty = np.flatnonzero(~member.any(axis=1))
    if len(empty):
        raise InvalidInput(f"expected records for every model, got none for model {empty[0]}")
    if seed < 0:
        raise InvalidInput(f"expected a seed from 0, got {seed}")


def _written(job: _Job, model: BlackBox, part: Path, first: bool) -> None:
    """Write a model; of a run's first one, make sure that what is read back is that model.

    A module may keep what it learned or drew outside of its parameters and buffers, and an
    estimator may hold objects that are not loaded.

    Raises:
        InvalidInput: it cannot be read back, or answers otherwise then.
    """
    job.recipe.write(model, part)
    if not first:
        return
    try:
        again = job.recipe.read(part, job.records.n_classes)
    except DamagedFile as error:
        raise InvalidInput(
            f"expected a model that can be read back without a pickle, but: {error}; train it "
            "through EstimatorRecipe, or without a store"
        ) from error
    x = job.records.x[: min(8, len(job.records))]
    gap = np.abs(np.exp(model.log_probabilities(x)) - np.exp(again.log_probabilities(x))).max()
    if gap > 1e-3:
        raise InvalidInput(
            "expected a model that its parameters and buffers describe wholly, got one whose "
            f"answers differ by {gap:.2g} once written and read; keep "
            "what it draws or learns in buffers (register_buffer), or train without a store"
        )


def _plan(job: _Job) -> tuple[str, str]:
    """Which path, and why."""
    recipe = job.recipe
    if not isinstance(recipe, TorchRecipe):
        return "one by one", "only torch models are stacked"
    if job.gradients is not mean_gradients:
        return "one by one", "it has gradients of its own"
    sizes = job.member.sum(axis=1)
    common = sizes == np.bincount(sizes).argmax()
    if common.sum() < 2:
        return "one by one", "no two models have equally many records"
    rows = np.stack([job.rows(int(k)) for k in np.flatnonzero(common)[:2]])
    objective = job.objective or RecipeLoss(recipe)
    reason = why_alone(recipe, job.records, rows, objective, model_seed(job.seed, 0))
    if reason:
        return "one by one", reason
    return "stacked", "a probe of two models gave what training alone gives"


Finished = tuple[dict[int, Any], float]


def _trained(
    job: _Job,
    path: str,
    todo: Sequence[int],
    store: Store | None,
    run: str,
    names: Sequence[str],
    workers: int | None,
) -> Iterator[Finished]:
    """Models as they are finished, with the seconds that each took."""
    if not todo:
        return
    if path == "stacked":
        yield from _stacks(job, todo)
        return
    rest = list(todo)
    while rest:
        index = rest.pop(0)
        started = time.perf_counter()
        model = job.alone(index)
        seconds = time.perf_counter() - started
        yield {index: model}, seconds
        if isinstance(job.recipe, TorchRecipe) or not rest:
            continue
        if workers is None and seconds * len(rest) < PROCESSES_PAY:
            continue
        yield from _in_processes(job, rest, store, run, names, workers)
        return


def _stacks(job: _Job, todo: Sequence[int]) -> Iterator[Finished]:
    """Whole chunks, even where one model is missing: a stack of other width rounds otherwise."""
    wanted = sorted({k // CHUNK for k in todo})
    for chunk in wanted:
        everyone = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(job.member)))
        sizes = {k: int(job.member[k].sum()) for k in everyone}
        for size in sorted(set(sizes.values())):
            group = [k for k in everyone if sizes[k] == size]
            if not set(group) & set(todo):
                continue
            started = time.perf_counter()
            models = _stack(job, group)
            yield models, (time.perf_counter() - started) / len(group)


def _stack(job: _Job, group: Sequence[int]) -> dict[int, BlackBox]:
    recipe = job.recipe
    assert isinstance(recipe, TorchRecipe)
    if len(group) == 1:
        return {group[0]: job.alone(group[0])}
    streams = [Streams.of(model_seed(job.seed, k)) for k in group]
    nets = [built(recipe, s.initial).to(recipe.device) for s in streams]
    rows = np.stack([job.rows(k) for k in group])
    with one_thread():
        data = Resident(job.records, nets[0], recipe.device)
        fit_stack(recipe, data, nets, rows, streams, job.objective or RecipeLoss(recipe))
    return {k: recipe.handle(checked(net)) for k, net in zip(group, nets, strict=True)}


def _in_processes(
    job: _Job,
    todo: Sequence[int],
    store: Store | None,
    run: str,
    names: Sequence[str],
    workers: int | None,
) -> Iterator[Finished]:
    from joblib import Parallel, cpu_count, delayed

    count = min(workers or cpu_count(), len(todo))
    paths = [store.path(run, names[k]) if store is not None else None for k in todo]
    tasks = (delayed(_one_process)(job, k, path) for k, path in zip(todo, paths, strict=True))
    results = Parallel(n_jobs=count, return_as="generator_unordered")(tasks)
    try:
        for index, model, written, seconds in results:
            if store is not None:
                store.adopt(written[0], run, names[index], written[1], seconds)
            yield {index: model}, seconds
    finally:
        with warnings.catch_warnings():
            # after Ctrl-C or a full disk: that tasks are given up needs no advice
            warnings.simplefilter("ignore")
            results.close()


def _one_process(job: _Job, index: int, path: Path | None) -> tuple[int, Any, Any, float]:
    started = time.perf_counter()
    model = job.alone(index)
    seconds = time.perf_counter() - started
    if path is None:
        return index, model, None, seconds
    write = partial(job.recipe.write, model)
    return index, None, write_beside(path, write), seconds
