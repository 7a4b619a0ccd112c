"""One class forgotten, in every model of every graph; see `every_model` for what the picture shows."""

from __future__ import annotations

from simulations.figures.inherited.claims import SINGLE
from simulations.figures.inherited.every_model import picture

PICTURE = picture(
    "one class: both accuracies of every model before and after, methods and retraining beside",
    several=False,
    claim=SINGLE,
)
