"""The figures by name; to add one, write its module and a line here."""

from __future__ import annotations

from simulations.figures.inherited import (
    depth,
    mfim,
    overlap,
    scope,
    several_classes,
    single_class,
    threshold,
)
from simulations.figures.inherited.picture import Picture

FIGURES: dict[str, Picture] = {
    "single-class": single_class.PICTURE,
    "several-classes": several_classes.PICTURE,
    "threshold": threshold.PICTURE,
    "depth": depth.PICTURE,
    "scope": scope.PICTURE,
    "mfim": mfim.PICTURE,
    "overlap": overlap.PICTURE,
}
