"""Small models and plans for the tests of graphs of models."""

from __future__ import annotations

import torch

from fl_unlearn import ModelGraph, PlannedModel

State = dict[str, torch.Tensor]
DIAMOND = [
    PlannedModel("base"),
    PlannedModel("left", ["base"], owner="0"),
    PlannedModel("right", ["base"], owner="1", trains="head"),
    PlannedModel("mean", {"left": 3, "right": 1}),
    PlannedModel("last", ["mean"], owner="0"),
]


def state(seed: int, classes: int = 3) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        "z.weight": torch.randn(classes, 4, generator=g),
        "a.half": torch.randn(5, generator=g).half(),
        "a.brain": torch.randn(5, generator=g).bfloat16(),
        "num_batches_tracked": torch.tensor(7 * seed),
        "mask": torch.rand(3, generator=g) > 0.5,
    }


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


class Trainer:
    """New weights, and a training that adds one; notes what it was asked for."""

    def __init__(self, fail_at: str = "") -> None:
        self.fail_at, self.trained = fail_at, list[str]()

    def initial(self, model: PlannedModel) -> State:
        return state(0)

    def train(self, model: PlannedModel, start: State) -> State:
        if model.name == self.fail_at:
            raise RuntimeError("the machine was switched off")
        self.trained.append(model.name)
        return {n: t if t.dtype == torch.bool else t + 1 for n, t in start.items()}


def grow(graph: ModelGraph, trainer: Trainer, plan=DIAMOND, **options):
    return graph.grow(plan, trainer.initial, trainer.train, **options)
