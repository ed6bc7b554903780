"""Worker processes of this machine: they stay, compute on one thread, and end with us.

Each is an executor of its own, from loky: where one is killed, nothing else is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.util import Finalize
from typing import Any

import torch

from vestige.errors import VestigeError
from vestige.training import travel

__all__ = ["TRIES", "end_idle", "in_processes", "killed"]

TRIES = 3
"""Workers that one task may lose before it is given up."""

IDLE = 300.0
"""Seconds after which a worker without work ends."""

ONE_CORE = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1"
)


def killed(place: int) -> VestigeError:
    return VestigeError(
        f"expected workers that live, got one that was killed {TRIES} times at task {place}; "
        "memory is probably too small: use fewer workers"
    )


class Worker:
    """One process, started at its first task.

    Args:
        gpu: the only one that it sees; "" changes nothing.
    """

    def __init__(self, gpu: str) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        self.gpu = gpu
        env = ONE_CORE | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        # advice of loky's, from its threads, where psutil is missing or a worker had ended
        warnings.filterwarnings("ignore", module=r"joblib\.externals\.loky")
        self._executor = ProcessPoolExecutor(
            1, timeout=IDLE, env=env, initializer=_begin, initargs=(os.getpid(),)
        )
        self.path = list(sys.path)
        self._last: Future[Any] | None = None
        self._ended = False
        _all.add(self)

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        with _interrupts_blocked():
            future: Future[Any] = self._executor.submit(work, *args)
        if self._last is None:
            # before loky's own, which it has registered at this start: the last one is called first
            threading._register_atexit(_end_all)  # type: ignore[attr-defined]
            # a process of multiprocessing's waits for its children before that
            Finalize(None, _end_all, exitpriority=100)
        self._last = future
        return future

    def kill(self, wait: bool = True) -> None:
        if self._ended:  # at exit, when little of Python may be left
            return
        self._ended = True
        # loky's thread trips over work that it has not passed on yet
        while self._last is not None and not (self._last.running() or self._last.done()):
            time.sleep(0.001)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._executor.shutdown(wait=wait, kill_workers=True)


_idle: list[Worker] = []
_all: weakref.WeakSet[Worker] = weakref.WeakSet()


def _disown() -> None:
    """In a fork: it has none of the threads through which its parent speaks to the workers."""
    _idle.clear()
    _all.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_disown)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C is for us: a process that is started here never hears of it, not even at first."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # starting it would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int) -> None:
    """The start of a worker."""
    from joblib.externals.loky import process_executor

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # a worker that grew is not a leak, for which loky would start another: it holds models
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """No worker goes on where our process was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _end_all() -> None:
    """At exit: loky would wait for what the workers are doing."""
    for worker in list(_all):
        worker.kill(wait=False)


def end_idle() -> None:
    """End the workers that have nothing to do."""
    while _idle:
        _idle.pop().kill()


def _taken(gpu: str) -> Worker:
    """A worker that waits for work, or a new one.

    One that was started before our path changed would not find modules that lie there.
    """
    for worker in [w for w in _idle if w.path != sys.path]:
        _idle.remove(worker)
        worker.kill()
    for worker in _idle:
        if worker.gpu == gpu:
            _idle.remove(worker)
            return worker
    return Worker(gpu)


def in_processes(
    job: travel.Job, tasks: Sequence[Any], left: deque[int], gpus: Sequence[str]
) -> Iterator[tuple[int, Any]]:
    """Results as they are finished, from one worker for each entry of `gpus`.

    Args:
        left: places of the tasks to do.

    Raises:
        VestigeError: one task's worker was killed `TRIES` times, or `work` raised it.
    """
    free: list[Worker] = []
    running: dict[Future[bytes], tuple[int, Worker]] = {}
    finished: deque[tuple[int, bytes]] = deque()
    deaths: Counter[int] = Counter()
    # those who share a GPU, or the machine's memory
    at_once = max(Counter(gpus).values())
    with travel.in_file(travel.parts(job, by_name=True, at_once=at_once)) as where:
        try:
            # not before, for what goes wrong until here would lose them
            for gpu in gpus:
                free.append(_taken(gpu))
            while left or running:
                while left and free:
                    place = left.popleft()
                    task = travel.dumped(tasks[place])
                    worker = free.pop()
                    try:
                        future = worker.submit(_do, *where, task)
                    except RuntimeError:  # it was killed while it had nothing to do
                        worker = Worker(worker.gpu)
                        future = worker.submit(_do, *where, task)
                    running[future] = place, worker
                # only now, so that nobody is idle while the caller is busy with a result
                yield from travel.results(finished)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    place, worker = running.pop(future)
                    try:
                        finished.append((place, future.result()))
                    except BrokenProcessPool:
                        worker = Worker(worker.gpu)
                        deaths[place] += 1
                        if deaths[place] == TRIES:
                            finished.append((place, travel.failed(killed(place))))
                        else:
                            left.appendleft(place)
                    free.append(worker)
            yield from travel.results(finished)
        finally:
            for _, worker in running.values():
                worker.kill()
            for worker in free:
                with contextlib.suppress(RuntimeError):
                    worker.submit(_forget)
                    _idle.append(worker)


def _do(path: str, sizes: Sequence[int], task: bytes) -> bytes:
    return travel.answered(path, () if path in travel.kept else travel.beside(path, sizes), task)


def _forget() -> None:
    travel.kept.clear()
