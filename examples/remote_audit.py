"""Audit a model that can only be asked: one behind HTTP, within a budget.

python examples/remote_audit.py
"""

import numpy as np
from sklearn.ensemble import RandomForestClassifier

import vestige as vs
from vestige.remote import RemoteModel
from vestige.serving import Running, app_of

N, BUDGET = 300, 2000

# records: half of the labels are noise, which a forest memorizes
rng = np.random.default_rng(0)
x = rng.normal(size=(3 * N, 8))
y = np.where(rng.random(3 * N) < 0.5, rng.integers(0, 3, 3 * N), x[:, :3].argmax(1))
split = vs.Split.from_arrays(
    members=(x[:N], y[:N]),
    nonmembers=(x[N : 2 * N], y[N : 2 * N]),
    population=(x[2 * N :], y[2 * N :]),
)

# the service: somebody else's, in real life
forest = RandomForestClassifier(30, min_samples_leaf=2, random_state=0).fit(x[:N], y[:N])
with Running(app_of(forest)) as service:
    # cache="answers.sqlite" would keep what was paid for until the next run
    with RemoteModel(f"{service.url}/predict", budget=BUDGET, batch_size=100) as target:
        report = vs.audit(
            target,
            split,
            recipe=vs.EstimatorRecipe(RandomForestClassifier(30, min_samples_leaf=2)),
            references=8,
            name="a service",
        )
        print(report)
        print(f"{target.n_paid} records were paid for, {target.n_cached} answered from memory")
