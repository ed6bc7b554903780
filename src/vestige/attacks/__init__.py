"""Membership inference attacks: one paper, one file.

Each is a frozen dataclass of hyper-parameters with one call,
`attack.run(target, candidates, known) -> Scores`, higher = more likely a member.
"""

from collections.abc import Mapping
from types import MappingProxyType

from vestige.attacks.attack import About, Attack
from vestige.attacks.extraction import Extraction
from vestige.attacks.gmia import GMIA
from vestige.attacks.indirect import IndirectGMIA
from vestige.attacks.label_only import AugmentationVotes, BoundaryDistance
from vestige.attacks.lira import LiRA
from vestige.attacks.population import Population
from vestige.attacks.quantile import QuantileRegression
from vestige.attacks.rmia import RMIA
from vestige.attacks.shadow import Shadow
from vestige.attacks.thresholds import Confidence, Correctness, Entropy, Loss, ModifiedEntropy
from vestige.models import BlackBox

__all__ = [
    "BY_NAME",
    "STANDARD",
    "About",
    "Attack",
    "AugmentationVotes",
    "BoundaryDistance",
    "Confidence",
    "Correctness",
    "Entropy",
    "Extraction",
    "GMIA",
    "IndirectGMIA",
    "LiRA",
    "Loss",
    "ModifiedEntropy",
    "Population",
    "QuantileRegression",
    "RMIA",
    "Shadow",
]

STANDARD: Mapping[str, Attack[BlackBox]] = MappingProxyType(
    {
        "loss": Loss(),
        "confidence": Confidence(),
        "entropy": Entropy(),
        "modified_entropy": ModifiedEntropy(),
        "correctness": Correctness(),
        "population": Population(),
        "lira_online": LiRA(),
        "lira_offline": LiRA(online=False),
        "lira_fixed_variance": LiRA(fixed_variance=True),
        "rmia_online": RMIA(),
        "rmia_offline": RMIA(online=False),
        "quantile": QuantileRegression(),
    }
)
"""What an audit runs by default, under the names it reports."""

BY_NAME: Mapping[str, Attack[BlackBox]] = MappingProxyType(
    {
        **STANDARD,
        "gmia": GMIA(),
        "shadow": Shadow(),
        "boundary_distance": BoundaryDistance(),
        "augmentation_votes": AugmentationVotes(),
    }
)
"""What an audit runs when asked by name: of those that are not standard, shadow models do worse
than others that need the same models, GMIA tests the records that stand out alone, and attacks on
labels ask the target many times a record."""
