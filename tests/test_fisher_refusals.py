"""Which parameters a scope names, and what is refused."""

from __future__ import annotations

import pytest
import torch
from cases import PROBLEMS, Mlp
from fisher_checks import run, same_sums
from references import reference_fisher
from torch import Tensor, nn

from fl_unlearn.fisher import check_model, find_head, fisher_diagonal, resolve_scope
from fl_unlearn.types import REST, FisherError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_find_head() -> None:
    model = Mlp()
    assert find_head(model) == ("fc2", model.fc2)
    assert find_head(model, "fc1") == ("fc1", model.fc1)
    assert find_head(model.fc1)[0] == ""
    with pytest.raises(FisherError, match=r"'fc1', 'fc2'; did you mean 'fc2'\?"):
        find_head(model, "fc.2")
    with pytest.raises(FisherError, match=r"Conv2d has no nn\.Linear .* head=\.\.\.: .* such as scope='\*'"):
        find_head(nn.Conv2d(1, 1, 1))
    with pytest.raises(FisherError, match=r"of its 1 layers .* is '0', a Conv2d\..* such as scope='0\.\*'"):
        find_head(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
    with pytest.raises(FisherError, match=r"ReLU has no nn\.Linear to be its head\. "):
        find_head(nn.ReLU())


@pytest.mark.parametrize(
    ("name", "scope", "names"),
    [
        ("mlp", "head", ["fc2.weight", "fc2.bias"]),
        ("mlp", "fc2.bias, fc1.*", ["fc1.weight", "fc1.bias", "fc2.bias"]),
        ("mlp", "*.[w]eight", ["fc1.weight", "fc2.weight"]),
        ("frozen_body", "all", ["fc2.weight"]),
        ("tied_head", "head", ["encoder.weight", "head.weight", "head.bias"]),
        ("tied_body", "b.weight", ["a.weight", "b.weight"]),
    ],
)
def test_resolve_scope(name: str, scope: str, names: list[str]) -> None:
    assert resolve_scope(PROBLEMS[name]().model, scope) == names


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("fc3.weight", "'fc3.weight' matches no parameter; the nearest are .*'fc2.weight'"),
        ("fc2.weight,FC1.*", r"'FC1\.\*' matches no parameter"),
        ("fc2.weight,fc1.*", r"'fc1\.\*' has no trainable parameter"),
        (" , ", "is empty"),
    ],
)
def test_scopes_that_name_nothing_are_refused(scope: str, message: str) -> None:
    with pytest.raises(FisherError, match=message):
        resolve_scope(PROBLEMS["frozen_body"]().model, scope)


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), None, "does not return the model's output"),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), None, "does not return the model's output"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "0", "head '0' does not return the model's output"),
    ],
    ids=["softmax", "changed in place", "hidden layer"],
)
def test_a_head_that_does_not_give_the_logits_is_refused(model: nn.Module, head: str, message: str) -> None:
    batch = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(FisherError, match=message):
        fisher_diagonal(model, [batch], head=head)
    got = fisher_diagonal(model, [batch], scope="0.*")
    same_sums(got, *reference_fisher(model, [batch], "normalized", got.names))


def test_a_head_never_called_is_refused() -> None:
    p = PROBLEMS["mlp_named_head_transposed_input"]()
    with pytest.raises(FisherError, match=r"head 'extra' is not called .* head=\.\.\."):
        fisher_diagonal(p.model, p.batches())


# --------------------------------------------------------------------------- refusals
def test_all_reasons_come_at_once() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.Dropout2d(0.1), nn.Dropout(0.0)
    )
    model.append(nn.InstanceNorm1d(2, track_running_stats=True)).append(nn.InstanceNorm1d(2))
    model.append(nn.LSTM(2, 2, num_layers=2, dropout=0.2)).append(nn.MultiheadAttention(2, 1, dropout=0.1))
    model.append(nn.RReLU()).append(nn.Linear(2, 2))
    with pytest.raises(FisherError) as e:
        fisher_diagonal(model, [], scope="nothing")
    text = str(e.value)
    for part in ("BatchNorm1d '1'", "SyncBatchNorm '2'", "Dropout2d '3'", "InstanceNorm1d '5'", "LSTM '7'"):
        assert part in text
    for part in ("MultiheadAttention '8'", "RReLU '9'", "'nothing' matches no parameter", "model.eval()"):
        assert part in text
    for part in ("'4'", "InstanceNorm1d '6'", "Linear"):
        assert part not in text
    fisher_diagonal(model.eval(), [], scope="10.*")


def test_check_model_names_what_is_wrong_with_parameters() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.BatchNorm1d(2, track_running_stats=False))
    model.register_parameter("c", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    with pytest.raises(FisherError) as e:
        check_model(model.eval(), ["0.weight", "c", "d"])
    for part in ("'0.weight' has no shape", "'c' is torch.complex64", "'d' is no parameter", "in every mode"):
        assert part in str(e.value)
    with pytest.raises(FisherError, match="no trainable parameter is in scope"):
        check_model(nn.Linear(1, 1), [])


class Returns(nn.Module):
    def __init__(self, make: object) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(3, 2), make

    def forward(self, x: Tensor) -> object:
        return self.make(self.fc(x))


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("scope", ["head", "fc.weight"])
@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (lambda z: z, (X, Y + 1), "batch 1: label 2, but the model has 2 classes"),
        (lambda z: z, (X, Y[:3]), "batch 1: 4 rows of logits, but 3 labels"),
        (lambda z: z, (X * torch.nan, Y), "batch 1: the logits of row 0 are not finite"),
        (lambda z: z, (X[:, None], Y), r"batch 1: logits must have shape \(N, C\).*\[4, 1, 2\]"),
        (lambda z: {"logits": z}, (X, Y), "logits as a tensor, got dict"),
        (lambda z: torch.cat([z, z], 1), (X, Y), "batch 0: 4 logits a row, but 2"),
    ],
    ids=["label", "rows", "nan", "shape", "dict", "classes"],
)
def test_data_that_do_not_fit_are_refused(make: object, batch: tuple, message: str, scope: str) -> None:
    with pytest.raises(FisherError, match=message):
        fisher_diagonal(Returns(make), [(X, Y), batch], scope=scope, num_classes=2)


def test_only_a_head_does_without_one_row_a_sample() -> None:
    folded = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2), nn.Identity())
    batch = X.view(2, 2, 3), Y
    assert fisher_diagonal(folded, [batch]).counts == {0: 2, 1: 2}
    with pytest.raises(FisherError, match=r"batch 0: inputs need one row a sample, 4, .* \[2, 2, 3\]"):
        fisher_diagonal(folded.append(nn.ReLU()), [batch], scope="all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "exact"}, "kind must be one of .*'exact'"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"true_samples": 0}, "true_samples must be at least 1"),
        ({"keep_classes": [-1]}, r"keep_classes must be whole numbers from 0 up, got \[-1\]"),
        ({"keep_classes": [4]}, "keep_classes names class 4, but there are 4"),
        ({"device": "cuda"}, "model is on 'cpu'"),
        ({"head": "fc9"}, "head='fc9'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    p = PROBLEMS["mlp"]()
    with pytest.raises(FisherError, match=message):
        fisher_diagonal(p.model, p.batches(), **arguments)


def test_empty_loaders_and_batches() -> None:
    p = PROBLEMS["mlp"]()
    kept = run(p, loader=[], keep_classes=[2], scope="all")
    assert (kept.counts, kept.num_classes) == ({REST: 0, 2: 0}, 4)
    assert not any(t.any() for s in kept.sums.values() for t in s.values())
    assert run(p, loader=[(p.x[:0], p.y[:0]), *p.batches()]).counts == run(p).counts
    conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(FisherError, match="give num_classes"):
        fisher_diagonal(conv, [], scope="all")
    assert fisher_diagonal(conv, [], scope="all", num_classes=2).num_classes == 2
