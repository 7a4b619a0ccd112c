"""The distance between parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.contract import NotKept, Number, Subject
from fl_unlearn.types import MeasureError

DISTANCE = METRICS["distance"]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def measured(model: nn.Module, original: nn.Module) -> dict[str, Number]:
    return dict(DISTANCE.measure(Subject(model, original, original, (), (), ())))


def test_it_is_the_norm_of_the_difference_in_terms_of_the_original() -> None:
    original, model = net(), net()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    found, moved, norm = measured(model, original), 0.0, 0.0
    for (name, now), before in zip(model.named_parameters(), original.parameters(), strict=True):
        own = sum(
            (a - b) ** 2 for a, b in zip(now.flatten().tolist(), before.flatten().tolist(), strict=True)
        )
        size = sum(b**2 for b in before.flatten().tolist())
        moved, norm = moved + own, norm + size
        if size:
            assert found[f"distance-{name}"].value == pytest.approx((own / size) ** 0.5, rel=1e-5)
        else:
            assert f"distance-{name}" not in found, "nothing is relative to 0"
    assert found["distance"] == Number(pytest.approx((moved / norm) ** 0.5, rel=1e-5), 1)
    assert found.keys() == {"distance"} | {
        f"distance-{n}" for n in ("0.weight", "0.bias", "1.weight", "2.weight", "2.bias")
    }


def test_known_distances() -> None:
    original = net()
    assert {n.value for n in measured(net(), original).values()} == {0.0}
    doubled = net()
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    assert [n.value for n in measured(doubled, original).values()] == pytest.approx([1.0] * 6)
    without_head = copy.deepcopy(original)
    nn.init.zeros_(without_head[2].weight)
    found = measured(without_head, original)
    assert found["distance-2.weight"].value == 1.0
    assert found["distance-0.weight"].value == 0.0
    assert 0 < found["distance"].value < 1


def test_statistics_of_batches_are_no_parameters() -> None:
    original, model = net(), net()
    model[1].running_mean.add_(100)
    assert measured(model, original)["distance"].value == 0


def test_models_of_other_shapes_have_no_distance() -> None:
    with pytest.raises(MeasureError, match=r"differ in names or shapes: 2\.bias, 2\.weight"):
        measured(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)), net())
    zeros = net()
    for p in zeros.parameters():
        nn.init.zeros_(p)
    with pytest.raises(MeasureError, match="all 0"):
        measured(net(), zeros)


def test_a_model_that_was_not_kept_is_the_reason() -> None:
    with pytest.raises(MeasureError, match=r"^it was not kept$"):
        measured(net(), NotKept("it was not kept", torch.device("cpu")))
