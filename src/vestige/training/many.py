"""A whole pool of models from a membership table.

Model k is trained on the records of row k, with a seed of its own, so that it does not depend on
which others are trained beside it. Stacks are cut at fixed places, so that a resumed run computes
what an undisturbed one computes, to the last bit, and so does a run on more workers.
"""

from __future__ import annotations

import platform
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from vestige.errors import DamagedFile, InvalidInput, VestigeError
from vestige.fingerprint import fingerprint, source_digest
from vestige.models import BlackBox, answers_alike
from vestige.pool import MemoryCache, Pool, SignalCache
from vestige.progress import Progress, quiet
from vestige.records import Records
from vestige.training import travel
from vestige.training.asking import Stacks
from vestige.training.engines import Engine, Local, on_device
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
    shapes_explained,
)
from vestige.training.planner import Choice, choose, memory_left
from vestige.training.recipe import Recipe, TorchRecipe
from vestige.training.stacked import alike, fit_stack
from vestige.training.store import Store, StoredFile, StoredSignals

__all__ = ["bootstraps", "half_and_half", "model_seed", "shadows", "train_many"]

LARGEST_KEPT = 256 * 2**20
"""Bytes of finished models that stay in memory, so that they are not read again at once."""

LOCAL = Local()

Table = NDArray[np.bool_]
Counts = NDArray[np.integer[Any]]


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


def shadows(n_models: int, n_records: int, n_train: int, seed: int) -> Table:
    """Independent draws without replacement, which may overlap between models.

    Each model is left as many records that it never saw, at least, as it is trained on (Shokri et
    al. 2017, sec. V-C). The first rows of a larger table are those of a smaller one.

    Returns:
        (n_models, n_records) bool, n_train of each row true.

    Raises:
        InvalidInput: fewer than twice n_train records, or no model.
    """
    if n_models < 1 or not 1 <= n_train <= n_records // 2:
        raise InvalidInput(
            f"expected at least one model and twice as many records as one is trained on, got "
            f"{n_models} models, {n_records} records and {n_train} to train on; train on "
            f"{max(n_records // 2, 1)} at most"
        )
    member = np.zeros((n_models, n_records), dtype=bool)
    for model in range(n_models):
        member[model, np.random.default_rng([seed, model]).permutation(n_records)[:n_train]] = True
    return member


def bootstraps(n_models: int, n_records: int, n_draws: int, seed: int) -> Counts:
    """Independent draws with replacement: how often each record is in each model's training set.

    Records that a model did not draw are its out-records (Long et al. 2018, sec. 4.2). The first
    rows of a larger table are those of a smaller one.

    Returns:
        (n_models, n_records) int16, n_draws in each row.

    Raises:
        InvalidInput: no model, no record or no draw, or a record that was drawn 2**15 times.
    """
    if min(n_models, n_records, n_draws) < 1:
        raise InvalidInput(
            f"expected at least one model, record and draw, got {n_models} models, {n_records} "
            f"records and {n_draws} draws"
        )
    counts = np.zeros((n_models, n_records), dtype=np.int16)
    most = np.iinfo(counts.dtype).max
    for model in range(n_models):
        drawn = np.random.default_rng([seed, model]).integers(0, n_records, n_draws)
        times = np.bincount(drawn, minlength=n_records)
        if times.max() > most:
            raise InvalidInput(
                f"expected records that are drawn {most} times at most, got {times.max()}; draw "
                f"less than {n_draws} from {n_records}"
            )
        counts[model] = times
    return counts


class _Models(Sequence[BlackBox]):
    """Models that are read when asked for; some of them may still be in memory.

    What travels to another process is their files' content.
    """

    def __init__(
        self,
        recipe: Recipe,
        n_classes: int,
        files: Sequence[StoredFile | bytes | None],
        kept: Mapping[int, BlackBox],
    ) -> None:
        self._recipe, self._n_classes, self._files = recipe, n_classes, files
        self._kept = kept

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> BlackBox: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BlackBox]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            places = range(len(self))[index]
            kept = {k: self._kept[i] for k, i in enumerate(places) if i in self._kept}
            return _Models(self._recipe, self._n_classes, [self._files[i] for i in places], kept)
        index = range(len(self))[index]
        if index in self._kept:
            return self._kept[index]
        file = self._files[index]
        assert file is not None, "a model without a file is kept"
        name = file.name if isinstance(file, StoredFile) else f"model {index}"
        return self._recipe.loads(_content(file), name, self._n_classes)

    def __getstate__(self) -> dict[str, Any]:
        files = [
            self._recipe.dumps(self._kept[k]) if file is None else _content(file)
            for k, file in enumerate(self._files)
        ]
        return {**vars(self), "_files": files, "_kept": {}}


def _content(file: StoredFile | bytes) -> bytes:
    return file.content() if isinstance(file, StoredFile) else file


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything that `train_many` was asked, in one hand.

    Attributes:
        named: what of these a worker imports, and its digest before anything was trained.
        first: an estimator that is looked at as it is stored; networks always are.
    """

    recipe: Recipe
    records: Records
    member: Table | Counts
    seed: int
    objective: Objective | None
    gradients: Gradients
    named: Mapping[tuple[str, str], str]
    choice: Choice = Choice("one by one", "")
    first: int | None = None

    def rows(self, index: int) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.records)), self.member[index])

    def alone(self, index: int) -> BlackBox:
        rows, seed = self.rows(index), model_seed(self.seed, index)
        once = self.member.dtype == np.bool_
        own = self.records[rows] if once else self.records.drawn(rows)
        own = replace(own, classes=self._classes())
        if isinstance(self.recipe, TorchRecipe):
            model: BlackBox = fit(
                self.recipe, own, seed=seed, objective=self.objective, gradients=self.gradients
            )
        else:
            model = self.recipe.fit(own, seed)
        if index == self.first or _holds_tensors(self.recipe):
            _same_when_read(self, model)
        return model

    def _classes(self) -> tuple[str, ...]:
        # a half may lack a class: its models still answer for all of them
        return self.records.classes or tuple(str(c) for c in range(self.records.n_classes))

    def key(self) -> str:
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
                # a stack of another width may round otherwise
                self.choice.path,
                self.choice.width,
                code_version(),
            ]
        )[:24]


def code_version() -> str:
    """The versions, and the source of what trains: a change to either makes old models stale."""
    import sklearn

    names = "cuda fit forests kernels many networks recipe stacked"
    digest = source_digest(*(Path(__file__).with_name(f"{name}.py") for name in names.split()))
    versions = [torch.__version__, sklearn.__version__, np.__version__, platform.machine()]
    settings = [torch.get_default_dtype(), torch.get_float32_matmul_precision()]
    settings += [torch.backends.cudnn.allow_tf32]
    return f"{digest} {' '.join(versions)} {settings}"


def train_many(
    recipe: Recipe,
    records: Records,
    member: Table | Counts,
    *,
    seed: int,
    engine: Engine = LOCAL,
    store: Store | None = None,
    progress: Progress = quiet,
    objective: Objective | None = None,
    gradients: Gradients = mean_gradients,
    path: str = "rule",
) -> Pool[BlackBox]:
    """Train one model for each row of a membership table.

    Plain networks are trained as stacks on explicit kernels, other small torch models as stacks
    through `torch.func` where that is shown to give what training alone gives; the rest one by
    one. The pool's provenance says which, and why. Results depend on neither the engine nor its
    workers: stacks are cut at fixed places.

    Args:
        records: all records, in the order of the table's columns.
        member: (n_models, n_records) bool; row k is what model k is trained on. Or whole numbers:
            how often each record is in that training set, as `bootstraps` draws them.
        seed: model k's own seed is `model_seed(seed, k)`.
        engine: where models are trained: `Local()` or `Ray()`.
        store: where models are kept; a stack is on disk when it is finished, and what is
            found there under the same recipe, records, table, seed and code is not trained again.
        progress: called with a label, the number done and the total.
        path: "rule" chooses by the network's shapes; "explicit", "torch.func" or "one by one" is
            taken where it can be; "timed" takes the fastest of a few steps on real batches, so
            that two runs may take different ones, and differ in the last digits.

    Raises:
        InvalidInput: a table of another shape, a model without records, or training that
            diverged; a network that its parameters and buffers do not wholly describe, or, with a
            store, an estimator that cannot be read back.
        VestigeError: a worker imports something else than what is here under a name.
        StoreError: the disk is full; what was finished is kept.
    """
    _check(records, member, seed)
    # first of all: trying the ways may change what these hold
    named = travel.digests(travel.by_name((recipe, objective, gradients)))
    job = _planned(_Job(recipe, records, member, seed, objective, gradients, named), path)
    run = job.key()
    names = [f"model-{k:05d}{recipe.suffix}" for k in range(len(member))]
    missing = {k for k, name in enumerate(names) if store is None or store.find(run, name) is None}
    groups = [group for group in _groups(job) if missing & set(group)]
    started, reused = time.perf_counter(), len(names) - len(missing)
    progress("models", reused, len(names))
    if store is not None and missing:
        store.forget_signals(run)
    kept: dict[int, BlackBox] = {}
    size, narrowest = 0, job.choice.width
    if store is not None and missing:
        job = replace(job, first=min(missing))
    # between processes of one's own an estimator may travel as it is
    packs = store is not None or _holds_tensors(recipe)
    pack = partial(_packed, recipe) if packs else None
    _agreed.add(job)
    engine = on_device(engine, getattr(recipe, "device", "cpu"))
    with closing(engine.run(_train, job, groups, pack=pack)) as results:
        for _, made in results:
            narrowest = min(narrowest, made.width)
            for index, model in made.models.items():
                if index not in missing:
                    continue
                missing.discard(index)
                if store is None:
                    kept[index] = _unpacked(job, model, names[index])
                    continue
                data = model if isinstance(model, bytes) else recipe.dumps(model)
                seconds = made.seconds / len(made.models)
                store.save(run, names[index], partial(_write, data), seconds)
                size += len(data)
                if size <= LARGEST_KEPT and not isinstance(model, bytes):
                    kept[index] = model
            progress("models", len(names) - len(missing), len(names))
    provenance = {
        "path": job.choice.path,
        "why": _said(job.choice, narrowest),
        "engine": engine.name,
        "n_models": len(names),
        "n_trained": len(names) - reused,
        "n_reused": reused,
        # what the models cost, not what this run paid: a resumed audit reports the same cost
        "seconds": time.perf_counter() - started if store is None else store.seconds(run),
        "key": run,
    }
    cache: SignalCache = MemoryCache() if store is None else StoredSignals(store, run)
    files = [None] * len(names) if store is None else store.files(run, names)
    models = _Models(recipe, records.n_classes, files, kept)
    return Pool(models, records, member > 0, cache, provenance, Stacks())


def _write(data: bytes, part: Path) -> None:
    part.write_bytes(data)


def _check(records: Records, member: Table | Counts, seed: int) -> None:
    """Refuse what would fail only after hours of training."""
    if member.ndim != 2 or member.shape[1] != len(records) or member.dtype.kind not in "bui":
        raise InvalidInput(
            f"expected a membership table of shape (n_models, {len(records)}), boolean or of "
            f"counts, got {member.dtype} of shape {member.shape}"
        )
    if member.dtype.kind == "i" and member.min(initial=0) < 0:
        raise InvalidInput(f"expected counts from 0, got {member.min()}")
    if not len(member):
        raise InvalidInput("expected a row for at least one model, got none")
    empty = np.flatnonzero(~member.any(axis=1))
    if len(empty):
        raise InvalidInput(f"expected records for every model, got none for model {empty[0]}")
    if seed < 0:
        raise InvalidInput(f"expected a seed from 0, got {seed}")


def _planned(job: _Job, path: str) -> _Job:
    """The job, with the way that its models are trained."""
    sizes = job.member.sum(axis=1)
    common = np.flatnonzero(sizes == np.bincount(sizes).argmax())[:2]
    rows = np.stack([job.rows(int(k)) for k in common])
    with shapes_explained(job.records):
        choice = choose(
            job.recipe,
            job.records,
            rows,
            model_seed(job.seed, 0),
            objective=job.objective,
            own_gradients=job.gradients is not mean_gradients,
            asked=path,
        )
    return replace(job, choice=choice)


def _said(choice: Choice, narrowest: int) -> str:
    if choice.path == "one by one" or narrowest == choice.width:
        return choice.why
    if narrowest == 1:
        return f"{choice.why}; some of them one by one, since they are not alike or lack memory"
    return f"{choice.why}; {narrowest} at a time, for lack of memory"


def _groups(job: _Job) -> list[tuple[int, ...]]:
    """Models that are trained together: cut at fixed places, of equally many records.

    Whole groups, even where one model is missing: a stack of other width may round otherwise.
    """
    width, sizes = job.choice.width, job.member.sum(axis=1)
    groups = []
    for first in range(0, len(sizes), width):
        part = range(first, min(first + width, len(sizes)))
        for size in sorted({int(sizes[k]) for k in part}):
            groups.append(tuple(k for k in part if sizes[k] == size))
    return groups


# --- what a worker does --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """Models of a group: handles, or the content of their files where they have traveled.

    Attributes:
        seconds: of training all of them.
        width: how many were trained together at least, which memory may have made fewer.
    """

    models: Mapping[int, BlackBox | bytes]
    seconds: float
    width: int


_agreed: weakref.WeakSet[_Job] = weakref.WeakSet()
"""Jobs of this process, and those that came to it and were found to be as they were sent."""


def _agree(job: _Job) -> None:
    """Nothing, where what was imported here is what there is under its name where the job is from.

    Raises:
        VestigeError: it reads something that was changed there after the import.
    """
    if job in _agreed:
        return
    found = travel.digests(job.named)
    other = [".".join(name) for name, digest in job.named.items() if found.get(name) != digest]
    if other:
        raise VestigeError(
            f"expected {other[0]} to be the same in a worker process, got another; a worker "
            "imports its module anew: pass what was set since as an argument (functools.partial), "
            "or use Local(1)"
        )
    _agreed.add(job)


def _train(job: _Job, group: tuple[int, ...]) -> _Made:
    started = time.perf_counter()
    _agree(job)
    if job.choice.path == "one by one" or (len(group) == 1 and job.choice.layers is None):
        models, width = {k: job.alone(k) for k in group}, job.choice.width
    else:
        models, width = _fitting(job, group, job.choice.width)
    return _Made(models, time.perf_counter() - started, width)


def _fitting(job: _Job, group: tuple[int, ...], width: int) -> tuple[dict[int, BlackBox], int]:
    """A stack, or two of half the width where memory does not suffice, and so on."""
    assert isinstance(job.recipe, TorchRecipe)
    need = len(group) * job.choice.each
    if len(group) == 1 or need <= memory_left(job.recipe.device):
        try:
            return _stack(job, group), width
        except _NotAlike:
            return {k: job.alone(k) for k in group}, 1
        except (MemoryError, RuntimeError) as error:
            if "vmap" in str(error):  # a branch on data that was never taken before
                return {k: job.alone(k) for k in group}, 1
            if not _out_of_memory(error):
                raise
            if len(group) == 1:
                raise InvalidInput(
                    f"expected memory for one model (about {need / 2**20:.0f} MiB), got none "
                    f"({str(error).splitlines()[0][:100]}); lower the batch size or free some"
                ) from error
    half = len(group) // 2
    models, narrow = _fitting(job, group[:half], half)
    others, narrower = _fitting(job, group[half:], len(group) - half)
    return models | others, min(narrow, narrower)


class _NotAlike(Exception):
    """Modules of a group differ in more than their tensors: each has its own forward pass."""


def _out_of_memory(error: BaseException) -> bool:
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _stack(job: _Job, group: Sequence[int]) -> dict[int, BlackBox]:
    recipe = job.recipe
    assert isinstance(recipe, TorchRecipe)
    streams = [Streams.of(model_seed(job.seed, k)) for k in group]
    nets = [built(recipe, s.initial).to(recipe.device) for s in streams]
    rows = np.stack([job.rows(k) for k in group])
    objective = job.objective or RecipeLoss(recipe)
    if not alike(nets):
        raise _NotAlike
    with one_thread():
        data = Resident(job.records, nets[0], recipe.device)
        fit_stack(recipe, data, nets, rows, streams, objective, job.choice.layers)
    models: dict[int, BlackBox] = {
        k: recipe.handle(checked(net)) for k, net in zip(group, nets, strict=True)
    }
    # they are alike: what one holds beside its tensors, all of them do
    _same_when_read(job, models[group[0]])
    return models


def _packed(recipe: Recipe, made: _Made) -> _Made:
    """What travels between processes."""
    return replace(made, models={k: recipe.dumps(model) for k, model in made.models.items()})


def _unpacked(job: _Job, model: BlackBox | bytes, name: str) -> BlackBox:
    if isinstance(model, bytes):
        return job.recipe.loads(model, name, job.records.n_classes)
    return model


def _holds_tensors(recipe: Recipe) -> bool:
    """Whether a model's file holds its tensors only, and the rest is what `build` makes."""
    return recipe.suffix == ".safetensors"


def _same_when_read(job: _Job, model: BlackBox) -> None:
    """Nothing, where a model that was written and read answers as it did before.

    A module may keep what it learned or drew outside of its parameters and buffers, and an
    estimator may hold objects that are not loaded.

    Raises:
        InvalidInput: it cannot be read back, or answers otherwise then.
    """
    of_tensors = _holds_tensors(job.recipe)
    try:
        again = job.recipe.loads(job.recipe.dumps(model), "a model", job.records.n_classes)
    except DamagedFile as error:
        todo = "let build make the same architecture each time"
        if not of_tensors:
            todo = "train it through EstimatorRecipe, or without a store"
        raise InvalidInput(
            f"expected a model that can be read back without a pickle, but: {error}; {todo}"
        ) from error
    x = job.records.x[: min(8, len(job.records))]
    model = copy(model)  # a handle of its own, so that nobody counts these queries
    if not answers_alike(model, x):
        raise InvalidInput(
            "expected the same answer to the same question, got two different ones; the model "
            "draws random numbers in eval mode (dropout that is always on?): make it deterministic"
        )
    gap = np.abs(np.exp(model.log_probabilities(x)) - np.exp(again.log_probabilities(x))).max()
    if gap > 1e-3:
        todo = "keep what it draws or learns in buffers (register_buffer)"
        if not of_tensors:
            todo = "train it without a store"
        raise InvalidInput(
            "expected a model that its parameters and buffers describe wholly, got one whose "
            f"answers differ by {gap:.2g} once written and read; {todo}"
        )
