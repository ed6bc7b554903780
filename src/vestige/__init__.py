"""vestige: what training leaves behind in a model.

import vestige as vs

split = vs.Split.from_arrays(members=(x_train, y_train), nonmembers=(x_test, y_test))
recipe = vs.TorchRecipe(build, epochs=20, batch_size=64, optimizer="sgd", lr=0.1)
report = vs.audit(vs.TorchModel(net), split, recipe=recipe)
report.save("runs/mine")
"""

__version__ = "0.1.0"

# isort: off
# what is audited
from vestige.gradients import Factored
from vestige.models import BlackBox, EstimatorModel, Predictions, TorchModel, WhiteBox
from vestige.pool import Pool
from vestige.records import Records, Split, split
from vestige.remote import RemoteModel
from vestige.scores import Scores

# how models like it are trained
from vestige.training import (
    EarlyStopping,
    EstimatorRecipe,
    FunctionRecipe,
    Local,
    Ray,
    Store,
    TorchRecipe,
    bootstraps,
    fit,
    half_and_half,
    shadows,
    train_many,
)

# the audit, its numbers and its report
from vestige import attacks, datasets, defenses, metrics, risk, synthesis
from vestige.audit import Plan, audit
from vestige.metrics import Estimate
from vestige.report import Finding, Report, gate
# isort: on

__all__ = [
    "BlackBox",
    "EarlyStopping",
    "Estimate",
    "EstimatorModel",
    "EstimatorRecipe",
    "Factored",
    "Finding",
    "FunctionRecipe",
    "Local",
    "Plan",
    "Pool",
    "Predictions",
    "Ray",
    "Records",
    "RemoteModel",
    "Report",
    "Scores",
    "Split",
    "Store",
    "TorchModel",
    "TorchRecipe",
    "WhiteBox",
    "attacks",
    "audit",
    "bootstraps",
    "datasets",
    "defenses",
    "fit",
    "gate",
    "half_and_half",
    "metrics",
    "risk",
    "shadows",
    "split",
    "synthesis",
    "train_many",
]
