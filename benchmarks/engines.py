"""Engines side by side: two workers against one, Ray against processes of our own.

    python benchmarks/engines.py [--quick] [--rounds 3]

One job (`train_many`) on each engine in turn, after its workers have started. Wall seconds are what
a user waits; CPU seconds are those of the work itself, in whatever process. The engines alternate,
and figures are medians over the rounds: two workers are worth less where other programs run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from tables import Table
from workloads import WORKLOADS, load

import vestige as vs
from vestige.training.engines import Engine, Local, Ray, stop

ENGINES = (Local(1), Local(2), Ray(workers=2))


@dataclass(frozen=True)
class Counted:
    """An engine, and the CPU seconds of what it did."""

    engine: Engine
    cpu: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.engine.name

    def run(
        self,
        work: Callable[[Any, Any], Any],
        shared: Any,
        tasks: Sequence[Any],
        *,
        pack: Callable[[Any], Any] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        for place, (result, seconds) in self.engine.run(_counted, (work, shared, pack), tasks):
            self.cpu.append(seconds)
            yield place, result


def _counted(job: tuple[Any, Any, Any], task: Any) -> tuple[Any, float]:
    work, shared, pack = job
    started = time.process_time()
    made = work(shared, task)
    made = made if pack is None else pack(made)
    return made, time.process_time() - started


def wall(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def once(engine: Engine, recipe: Any, *data: Any) -> tuple[dict[str, float], Any]:
    """Seconds of a first job of two steps, with what workers import for it; of the job; of the end.

    Also the models.
    """
    stop()
    start, _ = wall(partial(trained, replace(recipe, steps=2), *data, engine))
    counted = Counted(engine)
    seconds, pool = wall(partial(trained, recipe, *data, counted))
    end, _ = wall(stop)
    found = {"start": start, "wall": seconds, "cpu": sum(counted.cpu), "stop": end}
    return found | {"tasks": len(counted.cpu), "load": load()}, pool


def trained(recipe: Any, records: vs.Records, member: Any, engine: Engine) -> Any:
    return vs.train_many(recipe, records, member, seed=0, engine=engine)


def rows(rounds: int = 3, quick: bool = False) -> list[list[Any]]:
    """Of each workload and engine: medians of the rounds."""
    sizes = [("W5", 256, 40), ("W4", 8, 2)] if not quick else [("W5", 64, 1)]
    found: list[list[Any]] = []
    for name, models, epochs in sizes:
        workload = WORKLOADS[name]
        records = workload.records(None if name != "W4" else 1000)
        member = vs.half_and_half(models, len(records), seed=0)
        recipe = replace(workload.recipe, epochs=epochs)

        trained(replace(recipe, steps=2), records, member, Local(1))  # imports, once for all
        runs: dict[Engine, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
        answers = []
        for _ in range(rounds):
            for engine in ENGINES:
                timing, pool = once(engine, recipe, records, member)
                runs[engine].append(timing)
                x = records.x[:16]
                answers.append(np.stack([m.log_probabilities(x) for m in pool.models]))
        assert all(np.array_equal(answers[0], a) for a in answers), "engines differ"
        for engine, timings in runs.items():
            m = {key: median(t[key] for t in timings) for key in timings[0]}
            alone = median(t["wall"] for t in runs[ENGINES[0]])
            found.append(
                [name, engine.name, models, m["tasks"], m["start"], m["wall"], m["cpu"]]
                + [alone / m["wall"], m["stop"], m["load"]]
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small job, to see that it works")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    before = load()
    table = Table(
        "engines",
        f"One job on each engine, medians of {asked.rounds} rounds; load before: {before:.1f}",
        ["", "engine", "models", "tasks", "start s", "wall s", "CPU s", "x one", "stop s", "load"],
        rows(asked.rounds, asked.quick),
        ["", "", "d", ".0f", ".1f", ".1f", ".1f", ".2f", ".1f", ".1f"],
        ["All engines gave the same answers, to the last bit."],
    )
    table.show()
    table.save()


if __name__ == "__main__":
    main()
