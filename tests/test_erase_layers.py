from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_unlearn.erase_layers import Hidden, find_layers
from fl_unlearn.types import EraseError


class Built(nn.Module):
    """Layers by name, and a forward pass of the test's own."""

    def __init__(self, run: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def conv(bias: bool = True, **kwargs: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, bias=bias, **kwargs)


def head(features: int = 4 * 36) -> nn.Linear:
    return nn.Linear(features, 3)


X, FLAT = torch.randn(2, 4, 6, 6), torch.randn(2, 8)


def pooled(m: Built, x: torch.Tensor) -> torch.Tensor:
    return m.head(
        m.fc(
            functional.adaptive_avg_pool2d(functional.max_pool2d(functional.relu(m.conv(x)), 2), 1).flatten(1)
        ).tanh()
    )


def test_the_last_layer_before_the_head_is_found() -> None:
    model = Built(pooled, head=head(5), fc=nn.Linear(4, 5), conv=conv())
    model.train()
    assert find_layers(model, X, head="head") == [Hidden("fc", "fc.weight", "fc.bias", "bias", 5)]
    model = Built(pooled, conv=conv(), fc=nn.Linear(4, 5), head=head(5))
    assert find_layers(model, X) == [Hidden("fc", "fc.weight", "fc.bias", "bias", 5)]
    assert model.training


def test_a_convolution_that_gives_the_logits_is_no_hidden_layer() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [h.layer for h in find_layers(model, X)] == ["0"]


def test_named_layers_come_in_the_order_of_their_calls() -> None:
    model = Built(pooled, fc=nn.Linear(4, 5), conv=conv(), head=head(5))
    assert [h.layer for h in find_layers(model, X, "fc, c*")] == ["conv", "fc"]
    with pytest.raises(EraseError, match="matches 'conw'; there are 'fc', 'conv', 'head'"):
        find_layers(model, X, "conw")
    with pytest.raises(EraseError, match="no layer is named"):
        find_layers(model, X, " , ")
    with pytest.raises(EraseError, match="'head' gives the logits"):
        find_layers(model, X, "head")
    with pytest.raises(EraseError, match="head='fx'"):
        find_layers(model, X, head="fx")


def test_a_model_without_a_hidden_layer() -> None:
    with pytest.raises(EraseError, match="before its head"):
        find_layers(nn.Linear(8, 3), FLAT)


FINE = {
    "batch norm": lambda m, x: m.head(functional.leaky_relu(m.bn(m.conv(x))).flatten(1)),
    "in place": lambda m, x: m.head(torch.relu_(m.conv(x)).view(len(x), -1)),
    "pooling and dropout": lambda m, x: m.head(
        functional.dropout(
            functional.interpolate(functional.max_pool2d(functional.gelu(m.conv(x)), 2), scale_factor=2)
        ).flatten(1)
    ),
    "by hand": lambda m, x: m.head(
        (m.conv(x) * torch.sigmoid(m.bn.weight)[:, None, None]).clamp(min=0).flatten(1)
    ),
    "swish by hand": lambda m, x: m.head((lambda z: z * torch.sigmoid(z))(m.conv(x)).flatten(1)),
    "concatenated with itself": lambda m, x: m.wide((lambda z: torch.cat([z, -z], 1))(m.conv(x)).flatten(1)),
    "mean over positions": lambda m, x: m.small(functional.silu(m.conv(x)).mean((2, 3))),
    "indexed": lambda m, x: m.small(functional.softplus(m.conv(x))[:, :, 0, 0] / 2.0),
}


@pytest.mark.parametrize("how", FINE)
def test_what_may_follow(how: str) -> None:
    model = Built(FINE[how], conv=conv(), bn=nn.BatchNorm2d(4), wide=head(8 * 36), small=head(4), head=head())
    name = "wide" if "itself" in how else "small" if how in ("mean over positions", "indexed") else "head"
    assert [h.layer for h in find_layers(model, X, "conv", head=name)] == ["conv"]


REFUSED = {
    "residual": (lambda m, x: m.head((m.conv(x) + x).flatten(1)), r"joined \(add\).*residual sum"),
    "late residual": (
        lambda m, x: m.head((functional.relu(m.bn(m.conv(x))).add_(x)).flatten(1)),
        r"joined \(add\).*activation or pooling",
    ),
    "gated": (lambda m, x: m.head((m.conv(x) * x).flatten(1)), r"joined \(mul\)"),
    "in-place sum": (lambda m, x: m.head(m.add_to(m.conv(x), x).flatten(1)), r"joined \(add\)"),
    "maximum with a stranger": (lambda m, x: m.head(torch.max(m.conv(x), x).flatten(1)), r"joined \(max\)"),
    "clamped by a stranger": (lambda m, x: m.head(m.conv(x).clamp_(min=x).flatten(1)), r"joined \(clamp\)"),
    "concatenation": (lambda m, x: m.wide(torch.cat([m.conv(x), x], 1).flatten(1)), r"joined \(cat\)"),
    "layer norm": (lambda m, x: m.head(m.ln(m.conv(x)).flatten(1)), "layer_norm, which divides"),
    "group norm": (lambda m, x: m.head(m.gn(m.conv(x)).flatten(1)), "group_norm, which divides"),
    "twice": (
        lambda m, x: m.head(functional.relu(m.conv(functional.relu(m.conv(x)))).flatten(1)),
        "called 2 times",
    ),
    "never": (lambda m, x: m.head(x.flatten(1)), "called 0 times"),
    "unknown": (lambda m, x: m.head(torch.fft.fft(m.conv(x)).real.flatten(1)), "followed by fft_fft"),
}


class Norms(Built):
    @staticmethod
    def add_to(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        z += x
        return z


@pytest.mark.parametrize("how", REFUSED)
def test_what_must_not_follow(how: str) -> None:
    run, match = REFUSED[how]
    model = Norms(
        run,
        conv=conv(),
        bn=nn.BatchNorm2d(4),
        ln=nn.LayerNorm([4, 6, 6]),
        gn=nn.GroupNorm(2, 4),
        wide=head(8 * 36),
        head=head(),
    )
    with pytest.raises(EraseError, match=f"'conv' .*{match}"):
        find_layers(model, X, "conv", head="wide" if how == "concatenation" else "head")


def test_without_a_bias_the_batch_norm_takes_the_shift() -> None:
    model = Built(FINE["batch norm"], conv=conv(bias=False), bn=nn.BatchNorm2d(4), head=head())
    assert find_layers(model, X) == [Hidden("conv", "conv.weight", "bn.running_mean", "running_mean", 4)]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.head(functional.relu(m.conv(x)).flatten(1)),
        lambda m, x: m.head(m.bn(torch.relu_(m.conv(x))).flatten(1)),
        lambda m, x: m.head(m.bn(functional.relu(m.conv(x))).flatten(1)),
        lambda m, x: m.head((lambda z: m.bn(z) + functional.relu(z))(m.conv(x)).flatten(1)),
        lambda m, x: m.head(m.bn(m.conv(functional.relu(m.bn(x)))).flatten(1)),
    ],
    ids=["no norm", "in-place activation first", "activation first", "another reader", "norm used twice"],
)
def test_without_a_bias_nothing_else_can_take_it(run: Callable[..., torch.Tensor]) -> None:
    model = Built(run, conv=conv(bias=False), bn=nn.BatchNorm2d(4), head=head())
    with pytest.raises(EraseError, match=r"'conv' has no bias.*bias=True"):
        find_layers(model, X)


def test_weights_that_cannot_be_changed_are_refused() -> None:
    def two(m: Built, x: torch.Tensor) -> torch.Tensor:
        return m.head(functional.relu(m.b(functional.relu(m.a(x)))))

    tied = Built(two, a=nn.Linear(8, 8), b=nn.Linear(8, 8), head=head(8))
    tied.b.weight = tied.a.weight
    with pytest.raises(EraseError, match="shares its weight"):
        find_layers(tied, FLAT, "a")

    def backwards(m: Built, x: torch.Tensor) -> torch.Tensor:
        return m.head(functional.relu(m.a(functional.linear(x, m.a.weight.t()))))

    with pytest.raises(EraseError, match="shares its weight"):
        find_layers(Built(backwards, a=nn.Linear(8, 8), head=head(8)), FLAT)
    norm = Built(
        two, a=nn.Linear(8, 8), b=nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), head=head(8)
    )
    with pytest.raises(EraseError, match="parametrised"):
        find_layers(norm, FLAT)
    grouped = Built(FINE["batch norm"], conv=conv(groups=2), bn=nn.BatchNorm2d(4), head=head())
    with pytest.raises(EraseError, match="in 2 groups"):
        find_layers(grouped, X)
    model = Built(two, a=nn.Linear(8, 8), b=nn.Linear(8, 8193), head=head(8193))
    with pytest.raises(EraseError, match="8193 wide"):
        find_layers(model, FLAT)


def test_all_reasons_are_given_at_once() -> None:
    model = Built(REFUSED["residual"][0], conv=conv(), other=conv(), head=head())
    with pytest.raises(EraseError, match=r"'conv' is joined.*; 'other' is called 0 times"):
        find_layers(model, X, "*o*")
