"""Heads that are seen to give the logits, and which part of a model is trained."""

from __future__ import annotations

import pytest
import torch
from cases_fisher import CLASSES
from cases_models import DIGITS, samples, small
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fl_unlearn.types import FisherError
from simulations.models.trainable import head_of, trains_only


class HeadFirst(nn.Module):
    """Registers its head before the layers under it."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(5, CLASSES), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def test_a_head_that_is_none_is_told_before_training() -> None:
    with pytest.raises(
        FisherError, match=r"taken to be 'body', .* of 'head', 'body'; it does not return the model's"
    ):
        head_of(HeadFirst(), DIGITS)
    with pytest.raises(
        FisherError, match=r"has no nn\.Linear to be its head; the last of its 1 layers .* is '0', a Conv2d"
    ):
        head_of(nn.Sequential(nn.Conv2d(1, CLASSES, 8), nn.Flatten()), DIGITS)


def test_a_frozen_body_does_not_change() -> None:
    model, x, y = small("resnet18"), samples(DIGITS, 8), torch.arange(8) % CLASSES
    before = {n: t.clone() for n, t in model.state_dict().items()}
    frozen = trains_only(model, "head")
    assert len(frozen) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    model.train()
    for module in frozen:
        module.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    cross_entropy(model(x), y).backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"fc.weight", "fc.bias"}


def test_what_is_trained() -> None:
    model = small("resnet18")
    trains_only(model, "head")
    frozen = trains_only(model, "layer4.*,fc.*")  # what an earlier call froze may be trained again
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(("layer4.", "fc."))}
    batch_norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(frozen) == {m for n, m in batch_norms.items() if not n.startswith("layer4.")}
    assert trains_only(model, "all") == ()
    assert all(p.requires_grad for p in model.parameters())


def test_a_part_that_is_not_there_changes_nothing() -> None:
    model = small("lstm")
    trains_only(model, "head")
    with pytest.raises(FisherError, match="'haed' matches no parameter"):
        trains_only(model, "haed")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
