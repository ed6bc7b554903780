"""Per-record gradients: how many records a CPU second, beside a plain forward pass, in one run.

    python benchmarks/gradients.py [--quick]
    python benchmarks/gradients.py --records 1000000      time and memory of one long call

Networks: W2, a Purchase100-sized MLP (600-1024-512-256-128-100), and W3, a CNN for MNIST (5x5x32,
5x5x64, FC 1024). One thread, the ways interleaved, medians of the rounds. Compared are a loop over
batches of one, `vmap(grad)`, Opacus where it is installed, and what `vestige` does. Gradients that
are written out in full are let go after each chunk (256 records for the last layer, 32 for all), or
they would fill the memory; the loop for norms lets go of each at once.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from tables import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from workloads import load

import vestige as vs

Row = dict[str, Any]
BATCH = 1024
LAST, ALL = "last layer", "all layers"
NAIVE, NAIVE_NORMS = "batch of one", "batch of one, norms"
# records whose gradients are in memory at once, by whether they are of the last layer only
CHUNK = {True: 256, False: 32}


def w2() -> nn.Module:
    widths = (600, 1024, 512, 256, 128, 100)
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def w3() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 1024), nn.ReLU(), nn.Linear(1024, 10)),
    )


# network, shape of a record, classes, records for the quick ways and for those in full
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, int]] = {
    "W2 MLP": (w2, (600,), 100, 16 * BATCH, 256),
    "W3 CNN": (w3, (1, 28, 28), 10, 2 * BATCH, 64),
}


def made(n: int, shape: tuple[int, ...], classes: int) -> vs.Records:
    """Random records, made in pieces so that nothing but them takes memory."""
    rng = np.random.default_rng(0)
    x = np.empty((n, *shape), np.float32)
    for start in range(0, n, BATCH):
        piece = x[start : start + BATCH]
        rng.random(out=piece, dtype=np.float32)
    return vs.Records.from_arrays(x, rng.integers(0, classes, n))


def batches(records: vs.Records, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(records), size):
        part = slice(start, start + size)
        yield torch.from_numpy(records.x[part]), torch.from_numpy(records.y[part])


def forward(net: nn.Module, records: vs.Records) -> None:
    with torch.inference_mode():
        for x, _ in batches(records, BATCH):
            net(x)


def wanted(net: nn.Module, last: bool) -> list[nn.Parameter]:
    """The parameters in question; only they ask for gradients."""
    net.requires_grad_(not last)
    chosen: nn.Module = net[-1] if last else net  # type: ignore[index]
    return list(chosen.requires_grad_(True).parameters())


def batch_of_one(net: nn.Module, records: vs.Records, last: bool) -> None:
    params, kept = wanted(net, last), []
    for x, y in batches(records, 1):
        kept.append(torch.autograd.grad(cross_entropy(net(x), y), params))
        if len(kept) == CHUNK[last]:
            kept.clear()


def norms_of_one(net: nn.Module, records: vs.Records, last: bool) -> None:
    params = wanted(net, last)
    for x, y in batches(records, 1):
        found = torch.autograd.grad(cross_entropy(net(x), y), params)
        torch.stack([g.norm() for g in found]).norm()


def vmap_grad(net: nn.Module, records: vs.Records, last: bool) -> None:
    params = {name: p.detach() for name, p in net.named_parameters()}
    if last:
        params = dict(list(params.items())[-2:])

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(net, params, (x[None],)), y[None])

    for x, y in batches(records, CHUNK[last]):
        vmap(grad(loss), (None, 0, 0))(params, x, y)


def opacus(net: nn.Module, records: vs.Records, last: bool) -> None:
    # in eval mode it records nothing; neither network behaves otherwise in training
    from opacus import GradSampleModule

    net = copy.deepcopy(net)
    wanted(net, last)
    wrapped = GradSampleModule(net.train(), loss_reduction="sum")
    for x, y in batches(records, CHUNK[last]):
        cross_entropy(wrapped(x), y, reduction="sum").backward()
        wrapped.zero_grad()


def ours_full(net: nn.Module, records: vs.Records, last: bool) -> None:
    for chunk in vs.TorchModel(net).gradients(records, None if last else [""]):
        for found in chunk.values():
            if isinstance(found, vs.Factored):
                for start in range(0, len(found), CHUNK[last]):
                    found[start : start + CHUNK[last]].dense()


WAYS: list[tuple[str, str, bool, Callable[[nn.Module, vs.Records], Any]]] = [
    # scope, way, whether it is slow or fills the memory, what is run
    ("", "forward pass", False, forward),
    (LAST, NAIVE, True, lambda n, r: batch_of_one(n, r, True)),
    (LAST, "vmap(grad)", True, lambda n, r: vmap_grad(n, r, True)),
    (LAST, "opacus", True, lambda n, r: opacus(n, r, True)),
    (LAST, "vestige, written out", True, lambda n, r: ours_full(n, r, True)),
    (LAST, "vestige, factored", False, lambda n, r: vs.TorchModel(n).factored_gradients(r)),
    (LAST, NAIVE_NORMS, True, lambda n, r: norms_of_one(n, r, True)),
    (LAST, "vestige, norms", False, lambda n, r: vs.TorchModel(n).gradient_norms(r, last_of(n))),
    (ALL, NAIVE, True, lambda n, r: batch_of_one(n, r, False)),
    (ALL, "vmap(grad)", True, lambda n, r: vmap_grad(n, r, False)),
    (ALL, "opacus", True, lambda n, r: opacus(n, r, False)),
    (ALL, "vestige, written out", True, lambda n, r: ours_full(n, r, False)),
    (ALL, NAIVE_NORMS, True, lambda n, r: norms_of_one(n, r, False)),
    (ALL, "vestige, norms", False, lambda n, r: vs.TorchModel(n).gradient_norms(r)),
]


def last_of(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, nn.Linear)][-1:]


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def rows(quick: bool = False) -> list[Row]:
    """One row a network, scope and way.

    Keys: network, scope, way, n (records), cpu_seconds (median of the rounds), records_per_second
    (per CPU second), over_batch_of_one (same scope and result), of_forward (share of the forward
    pass's rate); the last four are None where something is not installed.
    """
    torch.set_num_threads(1)
    found = []
    for network, (build, shape, classes, many, few) in NETWORKS.items():
        torch.manual_seed(0)
        net = build().eval()
        records = made(many // 8 if quick else many, shape, classes)
        found += _of_network(network, net, records, few // 4 if quick else few, 1 if quick else 3)
    return found


def _of_network(
    network: str, net: nn.Module, records: vs.Records, few: int, rounds: int
) -> list[Row]:
    there = importlib.util.find_spec("opacus") is not None
    ways = [way for way in WAYS if there or way[1] != "opacus"]
    # the last layer written out costs about a tenth of all layers
    sizes = {LAST: 8 * few, ALL: few}
    chosen = [records[: sizes[scope]] if full else records for scope, _, full, _ in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for (_, _, _, work), part, taken in zip(ways, chosen, seconds, strict=True):
            net.requires_grad_(True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                taken.append(cpu_seconds(partial(work, net, part)))
    rates = {
        (scope, way): (len(part), statistics.median(taken))
        for (scope, way, _, _), part, taken in zip(ways, chosen, seconds, strict=True)
    }
    return [_row(network, scope, way, rates) for scope, way, _, _ in WAYS]


def _row(network: str, scope: str, way: str, rates: dict[tuple[str, str], Any]) -> Row:
    row: Row = {"network": network, "scope": scope, "way": way}
    numbers = ("n", "cpu_seconds", "records_per_second", "over_batch_of_one", "of_forward")
    if (scope, way) not in rates:
        return {**row, **dict.fromkeys(numbers)}

    def rate(key: tuple[str, str]) -> float:
        n, seconds = rates[key]
        return float(n / seconds)

    n, seconds = rates[scope, way]
    naive = rate((scope, NAIVE_NORMS if way.endswith("norms") else NAIVE)) if scope else None
    own = rate((scope, way))
    values = (n, seconds, own, own / naive if naive else None, own / rate(("", "forward pass")))
    return {**row, **dict(zip(numbers, values, strict=True))}


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def long_call(n: int, rounds: int = 2) -> Row:
    """The last layer's gradients of n W2 records in one call, beside a plain forward pass.

    Three ways, interleaved: forward, ours (the call makes its arrays), filled (the same call, into
    arrays that are there: what the system takes for fresh memory is not in it).

    Keys: n, record_bytes, result_bytes, peak_bytes (beyond the records, the result included),
    cpu_<way> and wall_<way> (seconds, one a round), ratio_ours and ratio_filled (CPU seconds over
    the forward pass's, one a round).
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, shape, classes, _, _ = NETWORKS["W2 MLP"]
    net, records = build().eval(), made(n, shape, classes)
    model = vs.TorchModel(net, batch_size=BATCH)
    few = records[:BATCH]
    forward(net, few), model.factored_gradients(few)
    before = resident()
    row: Row = {"n": n, "record_bytes": records.x.nbytes + records.y.nbytes}

    def timed(way: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        row.setdefault(f"cpu_{way}", []).append(time.process_time() - cpu)
        row.setdefault(f"wall_{way}", []).append(time.perf_counter() - wall)
        return done

    for _ in range(rounds):
        timed("forward", partial(forward, net, records))
        found = timed("ours", partial(model.factored_gradients, records))
        row["result_bytes"] = found.delta.nbytes + found.a.nbytes
        timed("filled", partial(model.factored_gradients, records, out=found))
        del found
    row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    for way in ("ours", "filled"):
        pairs = zip(row[f"cpu_{way}"], row["cpu_forward"], strict=True)
        row[f"ratio_{way}"] = [a / b for a, b in pairs]
    return row


def long_rows(row: Row) -> list[list[Any]]:
    """The rounds of `long_call`, as a table's rows."""
    found = []
    for way, said in (
        ("forward", "plain forward pass"),
        ("ours", "gradients of the last layer"),
        ("filled", "the same, into arrays that are there"),
    ):
        for i, seconds in enumerate(row[f"cpu_{way}"]):
            ratio = 1.0 if way == "forward" else row[f"ratio_{way}"][i]
            found.append([said, i + 1, seconds, row[f"wall_{way}"][i], ratio])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few records, one round")
    parser.add_argument("--records", type=int, help="one long call on so many W2 records instead")
    asked = parser.parse_args()
    if asked.records:
        row = long_call(asked.records)
        record, result, peak = (row[f"{k}_bytes"] / 1e9 for k in ("record", "result", "peak"))
        table = Table(
            "gradients-long",
            f"The last layer's gradients of {asked.records:,} W2 records (load {load():.1f})",
            ["", "round", "CPU s", "wall s", "of the forward pass"],
            long_rows(row),
            ["", "d", ".1f", ".1f", ".3f"],
            [
                f"{record:.2f} GB of records; at most {peak:.2f} GB beyond them, {result:.2f} GB "
                "of it the result. What the system takes for fresh memory is in the second row."
            ],
        )
    else:
        kept = ("network", "scope", "way", "n", "cpu_seconds", "records_per_second")
        kept += ("over_batch_of_one", "of_forward")
        table = Table(
            "gradients",
            f"Gradients of each record, on one thread (load {load():.1f})",
            ["", "scope", "way", "records", "CPU s", "per CPU s", "x one", "of forward"],
            [[row[key] for key in kept] for row in rows(asked.quick) if row["n"] is not None],
            ["", "", "", ",", ".2f", ",.0f", ".1f", ".0%"],
            ["x one: against batches of one record, for the same result."],
        )
    table.show()
    table.save()


if __name__ == "__main__":
    main()
