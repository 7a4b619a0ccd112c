"""Small models of the scenarios, and samples for them."""

from __future__ import annotations

import torch
from cases_fisher import CLASSES
from torch import Tensor, nn

from simulations.datasets.bundle import Inputs
from simulations.models import build
from simulations.models.texts import TEXTS

DIGITS, COLOUR, WORDS = Inputs((1, 8, 8)), Inputs((3, 32, 32)), Inputs((7,), 20)


def inputs_of(name: str) -> Inputs:
    return WORDS if name in TEXTS else DIGITS


def small(name: str, inputs: Inputs | None = None, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(name, inputs or inputs_of(name), classes, size="small")


def samples(inputs: Inputs, n: int, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    if inputs.vocabulary:
        return torch.randint(1, inputs.vocabulary, (n, *inputs.shape), generator=random)
    return torch.randn(n, *inputs.shape, generator=random)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
