"""Centring a head before it is dampened, which changes no probability and decides what dampening leads to.

Dampening multiplies: it brings the logit of a forgotten class towards 0 and not below. Whether the class then
still wins depends on where the other logits lie, which training does not care about: softmax is the same when
one number is added to all logits. Where the others are negative (seen with texts of few classes), the
forgotten class goes on winning at 0. So what is the same for all of a head's rows is taken out first:

    z  <-  z - 1 r^T z,        r_k = 1/n for each of the n classes that are kept, 0 for the others.

The kept classes' logits then have the mean 0, the largest of them is at least 0, and a class whose logit was
brought to 0 does not win. It is an affine map of the head's output of the form that `erase.Erasure` has, and
goes with the update as one (A = 1, B = r, mu = 0): each model takes out what is the same in its own rows.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

import torch

from fl_unlearn.erase import Erasure
from fl_unlearn.types import SettingsError, Signature, UpdateError
from fl_unlearn.update import ErasedLayer

log = logging.getLogger(__name__)


def head_among(names: Iterable[str], scope: str, head: str | None) -> str:
    """The head's name: what the settings say, or the module whose parameters the scope "head" found.

    Args:
        names: The parameters in scope.
        scope: The scope. Of another one nobody says that it is the head's, and a hidden layer must not be
            centred: that changes what the model computes.
        head: What the settings say.

    Raises:
        SettingsError: If neither tells it, or the head shares parameters with another module.
    """
    modules = {name.rpartition(".")[0] for name in names}
    if scope.strip() == "head" and len(modules) > 1:  # centring would change the other module, too
        raise SettingsError(
            f"the head's parameters are shared by {', '.join(sorted(map(repr, modules)))}, and only a head "
            "with its own can be centred: untie them, or do not centre"
        )
    if head is None and scope.strip() != "head":
        raise SettingsError(
            f"centring needs the head's name, and the scope {scope!r} has parameters of "
            f"{', '.join(sorted(map(repr, modules)))}: name it in the settings (head='...'), or do not centre"
        )
    return modules.pop() if head is None else head


def centred(head: str, forget: Collection[int], signature: Signature) -> dict[str, ErasedLayer]:
    """The map that centres a head, for `dampen.build_update`.

    Args:
        head: Name of the head, an ``nn.Linear``; "" where it is the model itself.
        forget: The labels to forget.
        signature: The model's tensors.

    Returns:
        The head's name to the map; empty for a head without a bias, which an update cannot map.

    Raises:
        UpdateError: If the model has no such head, or no class would be kept.
    """
    at = f"{head}." if head else ""
    weight, bias = f"{at}weight", f"{at}bias"
    if weight not in signature:
        raise UpdateError(f"centring needs the head's weight; the model has no {weight!r}")
    classes = signature[weight].shape[0]
    kept = torch.tensor([c not in forget for c in range(classes)], dtype=torch.float64)
    if not bool(kept.any()):
        raise UpdateError(f"nothing would be kept: the request names all {classes} classes of {head!r}")
    if bias not in signature:
        log.info("%r has no bias: it is not centred before it is dampened", head)
        return {}
    made = Erasure(
        torch.ones(classes, 1, dtype=torch.float64),
        (kept / kept.sum()).unsqueeze(1),
        torch.zeros(classes, dtype=torch.float64),
    )
    return {head: ErasedLayer(made, weight, bias, "bias", signature[weight], signature[bias])}
