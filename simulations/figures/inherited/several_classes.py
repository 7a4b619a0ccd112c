"""Several classes forgotten at once, in every model of every graph; see `every_model`."""

from __future__ import annotations

from simulations.figures.inherited.claims import SEVERAL
from simulations.figures.inherited.every_model import picture

PICTURE = picture("the same for several classes at once", several=True, claim=SEVERAL)
