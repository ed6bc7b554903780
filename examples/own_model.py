"""Audit a model of your own, from top to bottom: settings first, then the steps.

python examples/own_model.py
"""

import numpy as np
import torch

import vestige as vs

N, FEATURES, CLASSES = 400, 20, 3
REFERENCES = 16

# records: a hard problem with noisy labels, which a network can only memorize
rng = np.random.default_rng(0)
x = rng.normal(size=(2 * N, FEATURES)).astype(np.float32)
y = np.where(rng.random(2 * N) < 0.5, rng.integers(0, CLASSES, 2 * N), x[:, :CLASSES].argmax(1))
split = vs.Split.from_arrays(members=(x[:N], y[:N]), nonmembers=(x[N:], y[N:]))


# how a model like the target is trained
def build() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES)
    )


recipe = vs.TorchRecipe(build, epochs=40, batch_size=32, optimizer="adam", lr=0.01)

# the target: in real life, the model you already have
net = recipe.fit(split.members, seed=1).net

report = vs.audit(vs.TorchModel(net), split, recipe=recipe, references=REFERENCES, name="example")
print(report)

# one attack alone, and what it says about single records
pool = vs.train_many(
    recipe,
    split.candidates,
    vs.half_and_half(REFERENCES, len(split.candidates), seed=0),
    seed=0,
)
scores = vs.attacks.LiRA().run(vs.TorchModel(net), split.candidates, pool)
member = split.is_member(scores.ids)
print("LiRA by hand:", vs.metrics.auc(scores.values[member], scores.values[~member]).value)
