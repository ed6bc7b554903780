"""Engines: the same results everywhere, whatever happens to the workers."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import vestige
from vestige.errors import InvalidInput, MissingExtra, PlanError, StoreError, VestigeError
from vestige.training import cluster, engines, processes, travel
from vestige.training.engines import Engine, Local, Ray, engine_of, on_device, stop

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
EVERYWHERE = [
    pytest.param(Local(1), id="here"),
    pytest.param(Local(2), id="local"),
    pytest.param(Ray(workers=2), marks=needs_ray, id="ray"),
]
ELSEWHERE = EVERYWHERE[1:]


@pytest.fixture(scope="module", autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    stop()
    gc.collect()


# --- work, for functions of a module travel by their name ----------------------------------------


class Lesson(NamedTuple):
    x: Any
    y: Any
    activation: Any


def lesson() -> Lesson:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20)).astype(np.float32)
    return Lesson(x, (x[:, 0] > x[:, 1]).astype(np.int64), lambda z: torch.tanh(2 * z))


def trained(shared: Lesson, seed: int) -> torch.Tensor:
    """Weights of a small network, and a sum whose last bits say how many threads added it up."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(shared.x.copy()), torch.from_numpy(shared.y.copy())
    weights = [
        torch.randn(shape, generator=generator).requires_grad_() for shape in [(20, 8), (8, 2)]
    ]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        logits = shared.activation(x @ weights[0]) @ weights[1]
        torch.nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
    large = torch.randn(1_000_001, generator=generator).sum()
    return torch.cat([*(w.detach().flatten() for w in weights), large.reshape(1)])


def called(shared: Any, task: Any) -> Any:
    return task(shared)


def added(shared: int, task: int) -> int:
    return shared + task


def as_text(result: int) -> str:
    return f"packed {result}"


def where(shared: Any, task: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def sometimes_killed(shared: Path, task: int) -> int:
    """Task 2 takes its worker along, once."""
    marker = shared / f"{task} was here"
    if task == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def always_killed(shared: Path, task: int) -> int:
    if task == 1:
        with open(shared / "tries", "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return task


class Odd(Exception):
    """An exception that is not made again from its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("odd")


def failing(shared: Any, task: str) -> str:
    if task == "ours":
        raise InvalidInput("expected a loss that is finite, got nan")
    if task == "theirs":
        raise ZeroDivisionError("of theirs")
    if task == "odd":
        raise Odd(1, 2)
    return task


def waits_for_a_file(shared: Path, task: int) -> int:
    until = time.monotonic() + 60
    while task == 0 and not (shared / "go").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return task


def sleeps(shared: Path, task: int) -> int:
    (shared / f"{task}.{os.getpid()}").touch()
    time.sleep(100 * task)
    return task


def described(shared: dict[str, Any], task: int) -> Any:
    """What a worker sees of the arrays."""
    return {
        name: (type(a).__name__, a.flags.writeable, getattr(a, "filename", None), float(a.sum()))
        for name, a in shared.items()
    }


def surroundings(shared: Any, task: int) -> dict[str, Any]:
    time.sleep(0.2)
    names = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT", "CUDA_VISIBLE_DEVICES")
    return {"torch": torch.get_num_threads()} | {n: os.environ.get(n) for n in names}


def in_order(results: Iterator[tuple[int, Any]]) -> list[Any]:
    found = sorted(results, key=lambda pair: pair[0])
    assert [place for place, _ in found] == list(range(len(found)))
    return [result for _, result in found]


def all_end(pids: list[int], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


# --- results -------------------------------------------------------------------------------------


@functools.cache
def here() -> list[torch.Tensor]:
    return in_order(Local(1).run(trained, lesson(), range(5)))


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_the_same_to_the_last_bit(engine: Engine):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ours = here()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    theirs = in_order(engine.run(trained, lesson(), range(5)))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], ours[1])


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_tasks_may_hold_functions_of_no_module(engine: Engine):
    tasks = [lambda shared, k=k: shared["f"](k) for k in range(4)]
    assert in_order(engine.run(called, {"f": lambda k: 10 * k}, tasks)) == [0, 10, 20, 30]


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_no_tasks_and_one(engine: Engine):
    assert list(engine.run(added, 1, [])) == []
    assert list(engine.run(added, 1, [5])) == [(0, 6)]


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_only_what_travels_is_packed(engine: Engine):
    found = in_order(engine.run(added, 1, [0, 1], pack=as_text))
    assert found == ([1, 2] if engine == Local(1) else ["packed 1", "packed 2"])


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_nothing_is_done_before_it_is_asked_for(engine: Engine, tmp_path):
    engine.run(always_killed, tmp_path, [1]).close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_results_come_as_they_are_finished(engine: Engine, tmp_path):
    results = engine.run(waits_for_a_file, tmp_path, [0, 1, 2])
    assert next(results) == (1, 1)
    assert next(results) == (2, 2)
    (tmp_path / "go").touch()
    assert list(results) == [(0, 0)]


def test_results_do_not_depend_on_the_order_of_tasks():
    seeds = [4, 2, 0, 3, 1]
    found = in_order(Local(2).run(trained, lesson(), seeds))
    assert all(torch.equal(found[k], here()[seed]) for k, seed in enumerate(seeds))


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_errors_of_ours_arrive_as_they_are(engine: Engine):
    with pytest.raises(InvalidInput) as raised:
        list(engine.run(failing, None, ["a", "ours", "b", "c"]))
    assert type(raised.value) is InvalidInput
    assert str(raised.value) == "expected a loss that is finite, got nan"
    assert not getattr(raised.value, "__notes__", [])
    assert in_order(engine.run(failing, None, ["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_errors_of_others_say_where_they_come_from(engine: Engine):
    with pytest.raises(ZeroDivisionError, match="of theirs") as raised:
        list(engine.run(failing, None, ["theirs"]))
    assert "in failing" in "".join(raised.value.__notes__)
    with pytest.raises(RuntimeError, match="(?s)in a worker:.*Odd: odd"):
        list(engine.run(failing, None, ["odd"]))


def test_an_error_comes_after_the_results_that_came_with_it():
    finished = deque([(0, travel.failed(InvalidInput("no"))), (1, travel.dumped((10, None)))])
    results = travel.results(finished)
    assert next(results) == (1, 10)
    with pytest.raises(InvalidInput, match="no"):
        next(results)


# --- workers that are killed ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_a_killed_worker_costs_nothing_but_time(engine: Engine, tmp_path, capfd):
    assert in_order(engine.run(sometimes_killed, tmp_path, range(6))) == [0, 1, 4, 9, 16, 25]
    assert (tmp_path / "2 was here").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ELSEWHERE)
def test_a_task_that_kills_every_worker_is_given_up(engine: Engine, tmp_path, capfd):
    found = []
    with pytest.raises(VestigeError, match="killed 3 times at task 1; memory is probably too"):
        for _, result in engine.run(always_killed, tmp_path, range(4)):
            found.append(result)
    assert (tmp_path / "tries").read_text() == "xxx"
    assert set(found) <= {0, 2, 3}
    time.sleep(1)  # Ray speaks from another thread
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_workers_that_are_killed_while_idle():
    first = set(in_order(Local(2).run(where, None, range(4))))
    assert len(first) == 2 and os.getpid() not in first
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    assert all_end(list(first))
    time.sleep(0.3)  # until it is known that they are gone
    second = set(in_order(Local(2).run(where, None, range(4))))
    assert len(second) == 2 and not first & second


# --- ending early --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ELSEWHERE)
def test_closing_early_ends_what_is_being_done(engine: Engine, tmp_path, capfd):
    results = engine.run(sleeps, tmp_path, range(5))
    assert next(results) == (0, 0)
    # nobody is idle while we have the first result
    while len(list(tmp_path.iterdir())) < 3:
        time.sleep(0.01)
    started = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 10
    asleep = [int(p.suffix[1:]) for p in tmp_path.iterdir() if p.stem != "0"]
    assert len(asleep) == 2 and all_end(asleep)
    assert in_order(engine.run(added, 1, range(4))) == [1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


PROGRAM = """
import sys, time, os
import numpy as np
from vestige.training.engines import Local

def work(shared, task):
    open(f"{os.getpid()}.pid", "w").close()
    time.sleep(100 * task)
    return task

results = Local(2).run(work, np.ones(10), [0, 1, 1, 1])
next(results)
while len([n for n in os.listdir() if n.endswith(".pid")]) < 2:
    time.sleep(0.01)
print("ready", flush=True)
"""


def start(folder: Path, then: str) -> subprocess.Popen[str]:
    """A program with two busy workers, in a process group of its own."""
    env = os.environ | {"PYTHONPATH": str(Path(vestige.__file__).parents[1]), "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + then],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def workers_of(folder: Path) -> list[int]:
    return [int(p.stem) for p in folder.glob("*.pid")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "says"),
    [("sys.exit(3)", ""), ("raise OSError('disk full')", "OSError: disk full\n")],
)
def test_a_program_that_ends_does_not_wait_for_its_workers(tmp_path, then, says):
    program = start(tmp_path, then)
    try:
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert out == "ready\n" and err.endswith(says) and err.count("Traceback") == bool(says)
    assert "resource_tracker" not in err
    assert all_end(workers_of(tmp_path))


@pytest.mark.slow
def test_ctrl_c_is_answered_by_nobody_but_us(tmp_path):
    then = "try: print('set', flush=True); list(results)\n"
    then += "except KeyboardInterrupt: print('interrupted')"
    program = start(tmp_path, then)
    assert program.stdout is not None
    assert [program.stdout.readline() for _ in range(2)] == ["ready\n", "set\n"]
    os.killpg(program.pid, signal.SIGINT)
    assert program.communicate(timeout=60) == ("interrupted\n", "")
    assert program.returncode == 0 and all_end(workers_of(tmp_path))


@pytest.mark.slow
def test_ctrl_c_while_workers_start(tmp_path):
    then = "results.close()\nfrom vestige.training.processes import end_idle\nend_idle()\n"
    then += "results = Local(2).run(work, None, [1, 1])\nimport signal, threading\n"
    then += "threading.Timer(0.2, os.killpg, (0, signal.SIGINT)).start()\n"
    then += "try: next(results)\nexcept KeyboardInterrupt: print('interrupted')"
    assert start(tmp_path, then).communicate(timeout=60) == ("ready\ninterrupted\n", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
def test_workers_end_with_a_program_that_is_killed(tmp_path):
    program = start(tmp_path, "list(results)")
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    workers = workers_of(tmp_path)
    (file,) = {
        line.split()[-1]
        for line in Path(f"/proc/{workers[0]}/maps").read_text().splitlines()
        if "/vestige-" in line
    }
    assert Path(file).exists()
    program.kill()
    program.communicate(timeout=60)  # until nobody holds its output: the last one removes the file
    assert len(workers) == 2 and all_end(workers)
    assert not Path(file).exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_has_workers_of_its_own(tmp_path):
    program = """
import multiprocessing, os, warnings
from vestige.training.engines import Local

def work(shared, task):
    return os.getpid()

def ours():
    return {pid for _, pid in Local(2).run(work, None, range(2))}

def theirs(end):
    end.send(ours())

warnings.simplefilter("ignore")
before = ours()
context = multiprocessing.get_context("fork")
here, there = context.Pipe()
child = context.Process(target=theirs, args=(there,))
child.start()
print(here.poll(60) and not here.recv() & before)
child.join(60)
print(child.exitcode, ours() <= before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(vestige.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("True\n0 True\n", "")


# --- workers -------------------------------------------------------------------------------------


def test_workers_stay_from_one_run_to_the_next():
    first = set(in_order(Local(2).run(where, None, range(4))))
    assert set(in_order(Local(2).run(where, None, range(4)))) == first


@pytest.mark.parametrize("tasks", [[0], [threading.Lock()]], ids=["shared", "task"])
def test_what_cannot_be_sent_costs_no_worker(monkeypatch, tasks):
    idle = [processes.Worker("") for _ in range(2)]
    monkeypatch.setattr(processes, "_idle", list(idle))
    monkeypatch.setattr(processes.Worker, "submit", lambda worker, work: None)
    with pytest.raises(TypeError, match="cannot pickle"):
        list(Local(2).run(added, threading.Lock() if tasks == [0] else 1, tasks * 2))
    assert set(processes._idle) == set(idle)


def memory_of(shared: Any, task: int) -> int:
    return travel.at_once


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_workers_share_the_memory(engine: Engine):
    assert in_order(engine.run(memory_of, None, range(3))) == [2, 2, 2]
    assert travel.at_once == 1


def test_who_shares_what(monkeypatch):
    """A GPU is shared by those that it was dealt to, all else by all."""
    asked = []

    def parts(job: Any, *, by_name: bool, at_once: int) -> list[memoryview]:
        asked.append(at_once)
        raise StoreError("enough")

    monkeypatch.setattr(travel, "parts", parts)
    for gpus in [""] * 3, ["0", "1", "2"], ["0", "1", "0"]:
        with pytest.raises(StoreError):
            list(processes.in_processes((added, 1, None), range(3), deque(range(3)), gpus))
    assert asked == [3, 1, 2]


@pytest.mark.slow
def test_two_runs_at_once_have_workers_of_their_own(tmp_path):
    one = Local(2).run(waits_for_a_file, tmp_path, [0, 1])
    assert next(one) == (1, 1)
    assert in_order(Local(2).run(added, 1, range(3))) == [1, 2, 3]
    (tmp_path / "go").touch()
    assert list(one) == [(0, 0)]


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_workers_compute_on_one_thread(engine: Engine):
    for seen in in_order(engine.run(surroundings, None, range(4))):
        assert seen["torch"] == 1
        assert seen["OMP_NUM_THREADS"] == seen["LOKY_MAX_CPU_COUNT"] == "1"


def by_default(shared: Any, task: int) -> Any:
    return torch.zeros(1).dtype, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_choices_for_the_whole_process_are_taken_along(engine: Engine):
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    try:
        theirs = in_order(engine.run(by_default, None, range(3)))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert theirs == [(torch.float64, "high")] * 3
    assert in_order(engine.run(by_default, None, [0])) == [(torch.float32, "highest")]


class Counting:
    """Counts how often it is made ready for a journey."""

    journeys = 0

    def __reduce__(self) -> Any:
        Counting.journeys += 1
        return Counting, ()


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_what_is_shared_is_sent_once(engine: Engine):
    Counting.journeys = 0
    assert len(list(engine.run(called, Counting(), [id] * 6))) == 6
    assert Counting.journeys == 1


@pytest.mark.parametrize("engine", ELSEWHERE)
def test_shared_arrays_are_seen_and_not_written(engine: Engine, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3000.0).reshape(1000, 3))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    changed = np.load(tmp_path / "a.npy", mmap_mode="c")
    changed[0] = 7
    copied = np.load(tmp_path / "a.npy", mmap_mode="c")
    shared = {
        "plain": np.arange(10.0),
        "none": np.zeros((0, 3)),
        "mapped": mapped[100:],
        "copied": copied,
        "changed": changed,
    }
    (seen,) = in_order(engine.run(described, shared, [0]))
    file = str(tmp_path / "a.npy") if engine == Local(2) else None
    assert seen == {
        "plain": ("ndarray", False, None, 45.0),
        "none": ("ndarray", False, None, 0.0),
        "mapped": ("memmap", False, file, float(mapped[100:].sum())),
        "copied": ("memmap", False, file, float(copied.sum())),
        "changed": ("memmap", False, None, float(changed.sum())),
    }


@pytest.fixture
def on_disk(tmp_path, monkeypatch) -> Path:
    """Where what is shared lies, while there is no room in memory."""
    monkeypatch.setattr(travel.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(travel.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    return tmp_path


def test_no_copy_of_the_records_stays_behind(on_disk):
    results = Local(2).run(added, 1, range(4))
    next(results)
    (file,) = on_disk.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert len(list(results)) == 3 and not list(on_disk.iterdir())
    with pytest.raises(InvalidInput):
        list(Local(2).run(failing, None, ["a", "ours"]))
    assert not list(on_disk.iterdir())


@pytest.mark.slow
def test_workers_find_modules_that_were_put_on_the_path_later(tmp_path, monkeypatch):
    assert in_order(Local(2).run(added, 1, range(2))) == [1, 2]
    (tmp_path / "put_there_later.py").write_text("def doubled(shared, task): return 2 * task")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("put_there_later").doubled
    assert in_order(Local(2).run(work, None, range(3))) == [0, 2, 4]


def test_no_room_for_what_is_shared(on_disk, monkeypatch):
    def full(handle: int, mode: str) -> Any:
        os.close(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(travel, "open", full, raising=False)
    with pytest.raises(StoreError, match="room for 8 MiB in .*No space left on device; set TMPDIR"):
        list(Local(2).run(added, np.zeros(2**20), [1]))
    assert not list(on_disk.iterdir())


# --- how many, and on what -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "pays", "cores", "inside"),
    [(0.1, 0.3, 4, 2), (3.0, 3.5, 4, 2), (3.0, 30.0, 4, 6), (0.1, 0.0, 1, 6), (9.0, 30.0, 4, 1)],
)
def test_processes_are_started_where_they_pay(monkeypatch, first, pays, cores, inside):
    """By this clock the first task takes as long as said and the others 1 s.

    A first task that imports says little; one of 9 s says enough.
    """
    monkeypatch.setattr(engines, "PROCESSES_PAY", pays)
    monkeypatch.setattr(engines.joblib, "cpu_count", lambda: cores)
    ticks = iter([0, first, *np.arange(10.0, 30)])
    monkeypatch.setattr(engines.time, "perf_counter", lambda: next(ticks))
    asked = []

    def elsewhere(job: Any, tasks: Any, left: Any, gpus: list[str]) -> Iterator[tuple[int, int]]:
        asked.append(gpus)
        return iter([(place, -1) for place in left])

    monkeypatch.setattr(engines, "in_processes", elsewhere)
    found = in_order(Local().run(added, 1, range(6)))
    assert found == [*range(1, inside + 1), *[-1] * (6 - inside)]
    assert asked == ([[""] * min(cores, 6 - inside)] if inside < 6 else [])


def test_gpus_are_dealt_in_turn(monkeypatch):
    assert engines._dealt(5, ["0", "1"]) == ["0", "1", "0", "1", "0"]
    assert engines._dealt(2, []) == ["", ""]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engines._gpus() == ["0", "1"]
    assert Local(gpu=True).name == "local, up to 2 workers" and Local(3, gpu=True)._count() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5e,7")
    assert engines._gpus() == ["3", "GPU-5e"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert engines._gpus() == [] and Local(gpu=True).name == "local, 1 worker"


@pytest.mark.slow
def test_each_worker_sees_its_gpu_only(monkeypatch):
    monkeypatch.setattr(engines, "_gpus", lambda: ["5", "GPU-7"])
    seen = in_order(Local(2, gpu=True).run(surroundings, None, range(4)))
    assert {s["CUDA_VISIBLE_DEVICES"] for s in seen} == {"5", "GPU-7"}
    seen = in_order(Local(2).run(surroundings, None, range(4)))
    assert {s["CUDA_VISIBLE_DEVICES"] for s in seen} == {os.environ.get("CUDA_VISIBLE_DEVICES")}


def on_a_gpu(shared: torch.Tensor, task: int) -> tuple[int, float]:
    return torch.cuda.device_count(), float((shared.to("cuda") * task).sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    "engine", [Local(2, gpu=True), pytest.param(Ray(gpu=True), marks=needs_ray)]
)
def test_work_on_a_gpu(engine: Engine):
    assert in_order(engine.run(on_a_gpu, torch.ones(3), range(3))) == [(1, 0.0), (1, 3.0), (1, 6.0)]


def test_an_engine_for_a_device():
    assert on_device(Local(), "cpu") == Local() and on_device(Ray(), "cpu") == Ray()
    assert on_device(Local(), "cuda") == Local(gpu=True)
    assert on_device(Local(3), "cuda") == Local(3, gpu=True)
    assert on_device(Local(), "cuda:1") == Local(1) and on_device(Local(3), "cuda:1") == Local(3)
    assert on_device(Ray("a:1", 2), "cuda") == Ray("a:1", 2, gpu=True)
    with pytest.raises(PlanError, match="the device cuda with the engine ray, got cuda:1"):
        on_device(Ray(), "cuda:1")


def test_engines_by_their_words(monkeypatch):
    assert engine_of("local") == Local() and engine_of("local", 3) == Local(3)
    assert engine_of("ray", 2, "head:6379") == Ray("head:6379", 2)
    names = [e.name for e in (Local(1), Local(3), Ray(workers=4), Ray())]
    assert names == ["local, 1 worker", "local, 3 workers", "ray, 4 workers", "ray"]
    monkeypatch.setattr(engines.joblib, "cpu_count", lambda: 4)
    assert Local().name == "local, up to 4 workers"
    for words, why in [
        (("dask",), "the engine local or ray, got 'dask'"),
        (("local", 0), "at least one worker, got 0"),
        (("ray", -1), "at least one worker, got -1"),
        (("local", 2, "head:6379"), "no address with the engine local, got head:6379"),
    ]:
        with pytest.raises(PlanError, match=why):
            engine_of(*words)


# --- Ray -----------------------------------------------------------------------------------------


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"run `pip install 'vestige\[ray\]'`"):
        list(Ray().run(added, 1, [1]))


@needs_ray
def test_the_ray_that_is_joined_is_used_and_left_alone(monkeypatch):
    import ray

    list(Ray(workers=2).run(added, 1, [1]))
    ours = ray.get_runtime_context().get_job_id()
    assert list(Ray(workers=2).run(added, 1, [1])) == [(0, 2)]
    assert ray.get_runtime_context().get_job_id() == ours
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "_ours", None)  # as if it were the caller's
        assert list(Ray("127.0.0.1:1", workers=1).run(added, 1, [1])) == [(0, 2)]
        stop()
        assert ray.get_runtime_context().get_job_id() == ours


@needs_ray
def test_a_module_that_workers_do_not_find(tmp_path, monkeypatch):
    (tmp_path / "of_this_test_only.py").write_text("def work(shared, task): return task\n")
    list(Ray(workers=2).run(added, 1, [1]))
    monkeypatch.syspath_prepend(tmp_path)
    import of_this_test_only

    with pytest.raises(VestigeError, match="find the module of_this_test_only, but they do not"):
        list(Ray(workers=2).run(of_this_test_only.work, 1, [1]))


@needs_ray
def test_what_ray_cannot_do(monkeypatch):
    from ray.exceptions import RayTaskError

    def got(cause: Exception) -> str:
        def get(ref: None) -> bytes:
            raise RayTaskError("_do", f"Traceback\n{type(cause).__name__}: {cause}", cause)

        import ray

        monkeypatch.setattr(ray, "get", get)
        with pytest.raises(VestigeError) as raised:
            travel.opened(engines._fetched(ray, None, 4))
        return str(raised.value)

    said = got(ModuleNotFoundError("no vestige"))
    assert said.startswith("expected Ray to do task 4, got: ModuleNotFoundError: no vestige; inst")
    assert got(OSError("x")) == "expected Ray to do task 4, got: OSError: x"


@needs_ray
def test_nodes_with_other_code(monkeypatch):
    monkeypatch.setattr(engines, "_code", lambda: "vestige 99")
    with pytest.raises(VestigeError, match="expected vestige 99 on every node of the cluster, got"):
        list(Ray(workers=2).run(added, 1, [1]))


@pytest.fixture
def no_ray() -> None:
    stop()


@needs_ray
@pytest.mark.parametrize("address", ["nonsense", "host:port", "127.0.0.1:1", "no.such.host:6379"])
def test_addresses_where_nobody_is(no_ray, address):
    started = time.monotonic()
    with pytest.raises(VestigeError, match=f"expected a Ray cluster at {address}, got: .*; start"):
        list(Ray(address).run(added, 1, [1]))
    assert time.monotonic() - started < 20


@needs_ray
@pytest.mark.slow
def test_an_address_where_somebody_else_is(no_ray, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(VestigeError, match="got: no answer of Ray's within 4 s; start one"):
            list(Ray(address).run(added, 1, [1]))


@needs_ray
def test_no_cluster_to_be_found(no_ray, monkeypatch):
    # tests beside this one start clusters on this machine: the process that looks finds none
    blind = (
        "import functools\n"
        "from ray._private import services\n"
        "services.find_gcs_addresses = functools.cache(set)\n"
        "services.find_bootstrap_address = lambda *places: None\n"
    )
    monkeypatch.setattr(cluster, "_JOIN", blind + cluster._JOIN)
    with pytest.raises(VestigeError, match="at auto, got: Could not find any running Ray instance"):
        list(Ray("auto").run(added, 1, [1]))


def test_a_guard_for_programs_of_our_own(monkeypatch):
    guarded = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    for name in guarded:
        monkeypatch.setenv(name, "of the user's")
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    cluster.guard()
    assert os.environ["RAY_AUTH_TOKEN"] == "of the user's"
    for name in guarded:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    cluster.guard()
    assert not guarded & set(os.environ)  # too late for it
    monkeypatch.delitem(sys.modules, "ray")
    cluster.guard()
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_node_that_is_removed(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    stop()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = nodes.add_node(num_cpus=1)
        engine = Ray(nodes.address)
        results = engine.run(trained, lesson(), [k % 5 for k in range(30)])
        found = dict([next(results), next(results)])
        nodes.remove_node(node, allow_graceful=False)
        found |= dict(results)
        assert sorted(found) == list(range(30))
        assert all(torch.equal(found[k], here()[k % 5]) for k in found)
    finally:
        stop()
        nodes.shutdown()
        del nodes
        gc.collect()
