"""Where chunks of work are done: here, in worker processes, or on Ray.

Every worker computes on one thread, and a task is a function of what it is given, so what comes
out does not depend on the engine: it is the same to the last bit on the same hardware. A task
whose worker was killed is done again.
"""

from __future__ import annotations

import functools
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import joblib
import numpy as np
import sklearn
import torch

import vestige
from vestige.errors import PlanError, VestigeError
from vestige.fingerprint import source_digest
from vestige.training import travel
from vestige.training.cluster import join, last_line, leave
from vestige.training.processes import ONE_CORE, TRIES, end_idle, in_processes, killed

__all__ = ["Engine", "Local", "Ray", "engine_of", "on_device", "stop"]

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P")

PROCESSES_PAY = 60.0
"""Seconds of work left above which worker processes earn the import that each begins with."""

_IMPORTS = 5.0
"""Seconds that a first task may take for what it imports; then a second one says what is left."""


class Engine(Protocol):
    """Where chunks of work are done."""

    @property
    def name(self) -> str:
        """For the provenance."""
        ...

    def run(
        self,
        work: Callable[[S, T], R],
        shared: S,
        tasks: Sequence[T],
        *,
        pack: Callable[[R], P] | None = None,
    ) -> Generator[tuple[int, R | P]]:
        """Yield (place of the task, work(shared, task)) as they are finished, in any order.

        Args:
            work: a function of a module; from equal arguments it must make equal results.
            shared: what every task needs; arrays in it are read-only in a worker.
            tasks: small beside `shared`: each is sent by itself.
            pack: what a worker does to a result that has to travel; one that was made in this
                process comes as it is.

        Raises:
            VestigeError: `work` raised it, or workers are killed again and again.
        """
        ...


def _check(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise PlanError(f"expected at least one worker, got {workers}")


@dataclass(frozen=True)
class Local:
    """This machine, in processes that stay; or in this one, where they would not pay.

    Args:
        workers: processes; 1 works in this process. By default one for each core, as soon as the
            times of tasks that were done in this process say that more than `PROCESSES_PAY`
            seconds are left.
        gpu: each worker sees one GPU only, dealt in turn; by default there is one for each GPU.
    """

    workers: int | None = None
    gpu: bool = False

    def __post_init__(self) -> None:
        _check(self.workers)

    @property
    def name(self) -> str:
        count = self._count()
        # without a number, it is the work's length that decides
        most = "up to " if self.workers is None and count > 1 else ""
        return f"local, {most}{_workers(count)}"

    def _count(self) -> int:
        return self.workers or max(1, len(_gpus()) if self.gpu else joblib.cpu_count())

    def run(
        self,
        work: Callable[[S, T], R],
        shared: S,
        tasks: Sequence[T],
        *,
        pack: Callable[[R], P] | None = None,
    ) -> Generator[tuple[int, R | P]]:
        left, count, fastest = deque(range(len(tasks))), self._count(), math.inf
        while left and (count == 1 or self.workers is None):
            place, started = left.popleft(), time.perf_counter()
            with travel.one_core():
                result = work(shared, tasks[place])
            seconds = time.perf_counter() - started
            said = fastest < math.inf or seconds > _IMPORTS
            fastest = min(fastest, seconds)
            yield place, result
            if count > 1 and said and fastest * len(left) > PROCESSES_PAY:
                break
        if left:
            gpus = _dealt(min(count, len(left)), _gpus() if self.gpu else ())
            yield from in_processes((work, shared, pack), tasks, left, gpus)


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _gpus() -> Sequence[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    visible, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def _dealt(workers: int, gpus: Sequence[str]) -> list[str]:
    """The GPU of each worker; "" where there is none to deal."""
    return [gpus[worker % len(gpus)] if gpus else "" for worker in range(workers)]


# --- Ray -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ray:
    """A Ray cluster; without an address, a Ray that is started on this machine and stays.

    A Ray that this process has joined already is used as it is.

    Args:
        address: host:port of the cluster's head, or "auto" for the one on this machine.
        workers: tasks at a time; by default as many as the cluster has room for.
        gpu: each task has a GPU to itself.
    """

    address: str | None = None
    workers: int | None = None
    gpu: bool = False

    def __post_init__(self) -> None:
        _check(self.workers)

    @property
    def name(self) -> str:
        return f"ray, {_workers(self.workers)}" if self.workers else "ray"

    def run(
        self,
        work: Callable[[S, T], R],
        shared: S,
        tasks: Sequence[T],
        *,
        pack: Callable[[R], P] | None = None,
    ) -> Generator[tuple[int, R | P]]:
        ray = join(self.address, self.workers)
        room = int(ray.cluster_resources().get("GPU" if self.gpu else "CPU", 0))
        if not room:
            what = "GPU" if self.gpu else "CPU"
            raise VestigeError(f"expected a Ray cluster with a {what}, got one without")
        at_once = self.workers or 2 * room
        nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
        beside = 1 if self.gpu else int(min(self.workers or room, max(nodes)))
        parts = travel.parts((work, shared, pack), by_name=False, at_once=max(1, beside))
        job = ray.put([np.asarray(part) for part in parts])
        do = ray.remote(_do).options(num_cpus=1, num_gpus=int(self.gpu), max_retries=TRIES - 1)
        name, left = uuid.uuid4().hex, deque(range(len(tasks)))
        running: dict[Any, int] = {}
        finished: deque[tuple[int, bytes]] = deque()
        try:
            while left or running:
                while left and len(running) < at_once:
                    place = left.popleft()
                    task = travel.dumped(tasks[place])
                    running[do.remote(name, _code(), job, task)] = place
                # only now, so that nobody is idle while the caller is busy with a result
                yield from travel.results(finished)
                ray.wait(list(running), num_returns=1)
                ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
                for ref in ready:
                    finished.append((running[ref], _fetched(ray, ref, running[ref])))
                    del running[ref]
            yield from travel.results(finished)
        finally:
            for ref in running if ray.is_initialized() else ():
                ray.cancel(ref, force=True)


def _do(name: str, code: str, parts: Sequence[Any], task: bytes) -> bytes:
    if code != _code():
        return travel.failed(
            VestigeError(
                f"expected {code} on every node of the cluster, got {_code()} on one; install the "
                "same there"
            )
        )
    os.environ.update(ONE_CORE)
    return travel.answered(name, parts, task)


@functools.cache
def _code() -> str:
    """What has to be the same everywhere, for results to be."""
    digest = source_digest(Path(vestige.__file__).parent)
    versions = f"torch {torch.__version__}, numpy {np.__version__}, sklearn {sklearn.__version__}"
    return f"vestige {vestige.__version__} ({digest[:12]}), {versions}"


def _fetched(ray: Any, ref: Any, place: int) -> bytes:
    """An answer; an error as its answer where the task was given up, or could not be started."""
    try:
        answer: bytes = ray.get(ref)
        return answer
    except ray.exceptions.RayTaskError as error:
        missing = isinstance(error.cause, ImportError)
        what = "; install the same vestige on every node" if missing else ""
        why = VestigeError(f"expected Ray to do task {place}, got: {last_line(error)}{what}")
        return travel.failed(why)
    except ray.exceptions.RayError:
        return travel.failed(killed(place))


# --- choosing ------------------------------------------------------------------------------------


def engine_of(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """The engine of the command line's words.

    Raises:
        PlanError: no such engine, fewer than one worker, or an address where there is none.
    """
    if name == "local":
        if address is not None:
            raise PlanError(
                f"expected no address with the engine local, got {address}; use the engine ray"
            )
        return Local(workers)
    if name != "ray":
        raise PlanError(f"expected the engine local or ray, got {name!r}")
    return Ray(address, workers)


def on_device(engine: Engine, device: str) -> Engine:
    """The engine for work on a device: with CUDA, one process for each GPU.

    A device with a number is the choice of one GPU: every worker then uses that one.

    Raises:
        PlanError: a numbered device on Ray, which numbers the GPUs of each task from 0.
    """
    if isinstance(engine, Local) and device.startswith("cuda"):
        if device == "cuda":
            return replace(engine, gpu=True)
        return replace(engine, workers=engine.workers or 1)
    if isinstance(engine, Ray) and device.startswith("cuda"):
        if device not in ("cuda", "cuda:0"):
            raise PlanError(f"expected the device cuda with the engine ray, got {device}")
        return replace(engine, gpu=True)
    return engine


def stop() -> None:
    """End idle worker processes, and leave the Ray that was started or joined here.

    It happens at exit anyway.
    """
    end_idle()
    leave()
