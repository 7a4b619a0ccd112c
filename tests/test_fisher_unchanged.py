"""Computing a Fisher leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from cases_fisher import CLASSES, Fn, labels, weight
from torch import Tensor, nn

from fl_unlearn.fisher import fisher_diagonal


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(4, 4), "fc": nn.Linear(4, CLASSES)}


def test_a_pass_that_fails_leaves_the_model_as_it_was() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                x.register_hook(self.fail)
            return x

        def fail(self, g: Tensor) -> None:
            if len(g) > 16:  # none of the passes that compare have so many
                raise ValueError("stop")

    model = Fn(
        lambda m, x: m.fc(m.rnn(m.fails(m.a(x))[None])[0][0]), **layers(), fails=Fails(), rnn=nn.LSTM(4, 4)
    )
    model.eval().a.bias.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="stop"):
        fisher_diagonal(model, [(torch.randn(20, 4), labels(20))], scope="all")
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "forward" not in vars(model.rnn)
    model.a.bias.requires_grad_(True)


@pytest.mark.parametrize("kind", ["normalized", "batch"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_tensors_that_modules_hold_are_as_they_were(kind: str) -> None:
    def forward(m: Fn, x: Tensor) -> Tensor:
        m.seen = m.a(x)
        return m.fc(torch.tanh(m.seen))

    model = Fn(forward, **layers()).eval()
    nn.utils.weight_norm(model.a)
    x = torch.randn(3, 4)
    with torch.no_grad():
        model(x)
    weight, seen = model.a.weight, model.seen
    fisher_diagonal(model, [(x, labels(3))], kind=kind, scope="all")
    assert model.a.weight is weight
    assert model.seen is seen
    del model.seen
    fisher_diagonal(model, [(x, labels(3))], kind=kind, scope="all")
    assert not hasattr(model, "seen")
    assert not copy.deepcopy(model).a.weight.requires_grad


@pytest.mark.parametrize("kind", ["normalized", "batch"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_every_parameter_stays_in_its_place(kind: str) -> None:
    alias = nn.Linear(4, 4)
    model = Fn(
        lambda m, x: m.fc(torch.einsum("ni,oi->no", m.a(m.rnn(m.b(x)[:, None])[0][:, 0]), m.w)),
        **layers(), w=weight(4, 4), rnn=nn.LSTM(4, 4, batch_first=True), b=alias, c=alias,
    ).eval()  # fmt: skip
    own = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    x = torch.randn(3, 4)
    fisher_diagonal(model, [(x, labels(3))], kind=kind, scope="all")
    assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == own
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
