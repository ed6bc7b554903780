"""What is done to records and models on the way from an encoder to a decoder.

Redaction of records, and what a thief, or an innocent user, does to a model: pruning, fine-tuning,
another task, quantization. Each gives a new module; the one given is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vestige.errors import InvalidInput
from vestige.models import TorchModel
from vestige.records import Records
from vestige.training.fit import fit
from vestige.training.recipe import TorchRecipe
from vestige.watermarks.encoding import Encoded, Encoder

__all__ = [
    "adversarially_pruned",
    "border",
    "center",
    "columns",
    "fine_tuned",
    "grid",
    "pruned",
    "quantized",
    "redacted",
    "starting_from",
    "transferred",
]

Mask = NDArray[np.bool_]

# --- records -------------------------------------------------------------------------------------


def center(size: int, width: int) -> Mask:
    """(size, size), true on the middle square of this width."""
    _check_width(size, width)
    out = np.zeros((size, size), dtype=bool)
    low = (size - width) // 2
    out[low : low + width, low : low + width] = True
    return out


def border(size: int, width: int) -> Mask:
    """(size, size), false on the middle square of size - width: width / 2 on each side is true."""
    return ~center(size, size - width)


def grid(size: int, cells: int = 4) -> list[Mask]:
    """cells x cells masks (size, size), each true on one cell, row by row; together they are all.

    Raises:
        InvalidInput: cells do not divide the size.
    """
    if cells < 1 or size % cells:
        raise InvalidInput(f"expected cells that divide {size}, got {cells}")
    step, out = size // cells, []
    for i in range(cells):
        for j in range(cells):
            mask = np.zeros((size, size), dtype=bool)
            mask[i * step : (i + 1) * step, j * step : (j + 1) * step] = True
            out.append(mask)
    return out


def columns(records: Records, names: Sequence[str]) -> Mask:
    """(n_features,), true on columns of these names, or on all of a group `name=level`.

    Raises:
        InvalidInput: a name that no column has.
    """
    found = np.zeros(len(records.columns), dtype=bool)
    for name in names:
        here = [c == name or c.partition("=")[0] == name for c in records.columns]
        if not any(here):
            known = ", ".join(list(dict.fromkeys(c.partition("=")[0] for c in records.columns))[:8])
            raise InvalidInput(f"expected a column among {known}, ..., got {name!r}")
        found |= here
    return found


def redacted(records: Records, mask: Mask, value: float | NDArray[Any] = 0.0) -> Records:
    """Records whose masked inputs are replaced by a value.

    Args:
        mask: of the shape of a record, or of its last dimensions (all channels of a picture).
        value: in the space of the inputs: black in pictures that were scaled to [0, 1] is 0, in
            standardized ones it is (0 - mean) / deviation; one number, or an array that broadcasts
            to a record, as (channels, 1, 1).

    Raises:
        InvalidInput: the mask does not fit a record.
    """
    shape = records.x.shape[1:]
    if shape[len(shape) - mask.ndim :] != mask.shape:
        raise InvalidInput(f"expected a mask of a record's shape {shape}, got {mask.shape}")
    x = np.asarray(records.x[:])
    return replace(records, x=np.where(mask, np.asarray(value, x.dtype), x))


def _check_width(size: int, width: int) -> None:
    if not 0 <= width <= size:
        raise InvalidInput(f"expected a width from 0 to {size}, got {width}")


# --- models --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Copy:
    """Builds a copy of a module that is there."""

    net: nn.Module

    def __call__(self) -> nn.Module:
        return deepcopy(self.net)


def starting_from(recipe: TorchRecipe, net: nn.Module) -> TorchRecipe:
    """The recipe, from the weights of a module in place of new ones."""
    return replace(recipe, build=_Copy(net))


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """What pruning looks at: matrices and filters, not biases, not normalization."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    out = {}
    for name, module in net.named_modules():
        for own, p in module.named_parameters(recurse=False):
            if p.ndim >= 2 and not isinstance(module, norms):
                out[f"{name}.{own}" if name else own] = p
    return out


def pruned(net: nn.Module, share: float, *, layerwise: bool = False) -> nn.Module:
    """A copy whose smallest weights are zero.

    Args:
        share: of all weights; of equal ones the first go first.
        layerwise: the share of each layer's own, as Han et al. 2015 do.

    References: Song & Shokri 2020, section 6.2 (robustness to pruning).
    """
    if not 0 <= share <= 1:
        raise InvalidInput(f"expected a share in [0, 1], got {share}")
    out = deepcopy(net)
    weights = list(weights_of(out).values())
    if not weights:
        raise InvalidInput("expected a module with weight matrices, got none to prune")
    with torch.no_grad():
        for group in [[w] for w in weights] if layerwise else [weights]:
            sizes = torch.cat([w.abs().reshape(-1) for w in group])
            gone = torch.argsort(sizes, stable=True)[: round(share * len(sizes))]
            keep = torch.ones(len(sizes), dtype=torch.bool, device=sizes.device)
            keep[gone] = False
            parts = zip(group, torch.split(keep, [w.numel() for w in group]), strict=True)
            for w, kept in parts:
                w.mul_(kept.reshape(w.shape))
    return out


def adversarially_pruned(
    encoder: Encoder,
    recipe: TorchRecipe,
    net: nn.Module,
    share: float,
    records: Records,
    *,
    seed: int,
    chosen: Mask | None = None,
    layerwise: bool = False,
) -> Encoded:
    """Prune, then train on with the encoder and a fresh discriminator; what is zero stays zero.

    Args:
        recipe: of the training after pruning: 20 epochs at 0.001 in the paper, the encoder's rate
            as well.

    References: Song & Shokri 2020, section 6.2 (adversarial pruning).
    """
    small = pruned(net, share, layerwise=layerwise)
    kept = {name: w.detach() != 0 for name, w in weights_of(small).items()}
    start = starting_from(recipe, small)
    return encoder.fit(start, records, seed=seed, chosen=chosen, kept=kept)


def fine_tuned(recipe: TorchRecipe, net: nn.Module, records: Records, *, seed: int) -> TorchModel:
    """The module trained on, without any encoding."""
    return fit(starting_from(recipe, net), records, seed=seed)


def transferred(
    recipe: TorchRecipe,
    net: nn.Module,
    head: str,
    records: Records,
    *,
    seed: int,
) -> TorchModel:
    """The module with a new output layer, all of it trained on another task.

    Args:
        recipe: of the training on the new task.
        head: name of the output layer, an `nn.Linear`; a new one has the records' classes.
        records: of the new task.

    References: Song & Shokri 2020, section 6.2 (transfer learning).
    """
    out = deepcopy(net)
    old = dict(out.named_modules()).get(head)
    if not isinstance(old, nn.Linear):
        linear = ", ".join(n for n, m in out.named_modules() if isinstance(m, nn.Linear))
        raise InvalidInput(f"expected the output layer among {linear}, got {head!r}")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, records.n_classes, bias=old.bias is not None)
    parent, _, name = head.rpartition(".")
    setattr(out.get_submodule(parent), name, new.to(old.weight))
    return fit(starting_from(recipe, out), records, seed=seed)


def quantized(net: nn.Module, bits: int = 8) -> nn.Module:
    """A copy whose weights take 2^bits - 1 values a tensor, symmetric around zero."""
    if not 2 <= bits <= 16:
        raise InvalidInput(f"expected 2 to 16 bits, got {bits}")
    out, top = deepcopy(net), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for w in weights_of(out).values():
            scale = w.abs().max() / top
            if scale > 0:
                w.copy_((w / scale).round() * scale)
    return out
