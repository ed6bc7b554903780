"""LiRA on an overfit random forest, beside SACRO-ML's: the same job, the same machine, one run.

    python benchmarks/forest.py [--peer PYTHON]     PYTHON: an interpreter that has sacroml

2,000 members, 2,000 non-members, 4 classes, 20 features, a forest of 100 trees, 32 reference
models; each side writes its report. Ours fits the references by scikit-learn and, in a second run,
by scikit-learn-intelex; the target is scikit-learn's in all three. Each is one process; what is
compared is its CPU time with that of its children, the import of the library included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = """
import json, os, sys
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier

x, y = make_classification(
    4000, 20, n_informative=10, n_redundant=4, n_classes=4, random_state=0
)
forest = RandomForestClassifier(100, random_state=0).fit(x[:2000], y[:2000])
"""

OURS = (
    COMMON
    + """
import vestige as vs

split = vs.Split.from_arrays((x[:2000], y[:2000]), (x[2000:], y[2000:]))
recipe = vs.EstimatorRecipe(forest, accelerate=ACCELERATE)
report = vs.audit(
    forest, split, recipe=recipe, references=32, attacks=["lira_online"], out="out"
)
found = report.findings[0].metrics
print(json.dumps({name: found[name].value for name in ("auc", "tpr@0.01", "tpr@0.001")}))
"""
)

PEER = (
    COMMON
    + """
from sacroml.attacks.likelihood_attack import LIRAAttack
from sacroml.attacks.target import Target

target = Target(
    model=forest, dataset_name="synthetic",
    X_train=x[:2000], y_train=y[:2000], X_test=x[2000:], y_test=y[2000:],
)
attack = LIRAAttack(n_shadow_models=32, mode="online-carlini", output_dir="out")
attack.attack(target)
found = attack.attack_metrics[0]
print(json.dumps({
    "auc": found["AUC"], "tpr@0.01": found.get("TPR@0.01"), "tpr@0.001": found.get("TPR@0.001"),
}))
"""
)


def measured(python: str, program: str, path: str) -> tuple[dict[str, float], float]:
    """What the program printed, and the CPU seconds of its whole process tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", program],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter that has sacroml")
    peer = parser.parse_args().peer
    source = str(Path(__file__).parent.parent / "src")
    print(
        f"load {os.getloadavg()[0]:.1f}\n{'':22}{'AUC':>8}{'TPR@1%':>9}{'TPR@0.1%':>10}{'CPU s':>8}"
    )
    rows = [
        (name, *measured(sys.executable, f"ACCELERATE = {quick}\n{OURS}", source))
        for name, quick in (("vestige", False), ("vestige, accelerated", True))
    ]
    if peer:
        rows.append(("sacroml", *measured(peer, PEER, "")))
    for name, found, cpu in rows:
        numbers = [found[k] for k in ("auc", "tpr@0.01", "tpr@0.001")]
        shown = "".join(f"{v:9.3f}" if v is not None else f"{'-':>9}" for v in numbers)
        print(f"{name:22}{shown}{cpu:9.1f}")
    if peer:
        for name, _, cpu in rows[:2]:
            print(f"CPU time, {name} over sacroml: {cpu / rows[2][2]:.2f}")


if __name__ == "__main__":
    main()
