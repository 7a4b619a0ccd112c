"""The Fisher of the samples that a request names, whatever their labels, against that of all others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from fl_unlearn.forget_set import NAMED
from fl_unlearn.types import REST

from .diagonal import fisher_diagonal
from .sums import FisherSums


def fisher_of_named(
    model: nn.Module,
    named: Iterable[Any],
    rest: Iterable[Any],
    *,
    reference_share: float | int | None = None,
    **settings: Any,
) -> FisherSums:
    """Sums over the named samples under `forget_set.NAMED`, and over all others under `types.REST`.

    Args:
        model: See `fisher_diagonal`, as for what is not said here.
        named: Batches of the named samples.
        rest: Batches of the others.
        reference_share: Part of ``rest`` that its sums are estimated from.
        **settings: More of `fisher_diagonal`; ``keep_classes`` is decided here.

    Raises:
        FisherError: If the model, the settings or the data do not allow it, with the reasons.
    """
    own = fisher_diagonal(model, named, keep_classes=[], **settings)
    more = {**settings, "num_classes": own.num_classes}
    others = fisher_diagonal(model, rest, keep_classes=[], reference_share=reference_share, **more)
    return replace(own, sums={NAMED: own.sums[REST]}, counts={NAMED: own.counts[REST]}) + others
