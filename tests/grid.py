"""The Grid that calls ClientApps directly, under the name that the tests use."""

from __future__ import annotations

from simulations.local_grid import LocalGrid as LocalGrid
from simulations.local_grid import Tamper as Tamper
