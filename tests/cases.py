"""Models and data that tests compare implementations over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Problem:
    """A model in eval mode with data, and the scopes worth trying on it."""

    model: nn.Module
    x: Tensor
    y: Tensor
    num_classes: int
    scopes: tuple[str, ...]
    head: str | None = None

    def batches(self, size: int = 5) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.split(size), self.y.split(size), strict=True))


PROBLEMS: dict[str, Callable[[], Problem]] = {}


def problem(make: Callable[[], Problem]) -> Callable[[], Problem]:
    def seeded() -> Problem:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            out = make()
        out.model.eval()
        return out

    PROBLEMS[make.__name__] = seeded
    return seeded


class Mlp(nn.Module):
    def __init__(self, inputs: int = 6, hidden: int = 7, classes: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


class Cnn(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = norm(4)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv1(x)))
        return self.fc(self.drop(torch.relu(self.conv2(h)).mean((2, 3))))


class TiedHead(nn.Module):
    """The head's weight is also the first layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 6)
        self.head.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.encoder(x)))


class TiedBody(nn.Module):
    """Two hidden layers share a weight; the head is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = nn.Linear(5, 5)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.b(torch.tanh(self.a(x)))))


class FunctionalReuse(nn.Module):
    """Calls its head once, and uses the head's weight once more outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(nn.functional.linear(x.to(self.fc.weight.device), self.fc.weight)))


class Reused(nn.Module):
    """Calls one layer twice, and its head twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.fc(torch.tanh(self.fc(h)))


class TextLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 4, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embed(x))[0][:, -1])


class TextTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x)).mean(1))


class Branching(nn.Module):
    """Control flow that depends on the data, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.unused = nn.Parameter(torch.ones(3))
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = [torch.tanh(self.a(r)) if r.sum().item() > 0 else 2 * self.a(r) for r in x]
        return self.fc(torch.stack(rows))


class PooledHead(nn.Module):
    """Its head gets a sequence, and the logits are the mean over it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).mean(1)


def labels(n: int, classes: int) -> Tensor:
    """Unbalanced labels: about half are 0, and the last class is missing."""
    return (torch.randint(0, 2, (n,)) * torch.randint(0, classes - 1, (n,))).long()


@problem
def mlp() -> Problem:
    return Problem(Mlp(), torch.randn(13, 6), labels(13, 4), 4, ("head", "all", "fc1.*", "fc2.bias"))


@problem
def mlp_without_bias() -> Problem:
    return Problem(Mlp(bias=False), torch.randn(9, 6), labels(9, 4), 4, ("head", "all"))


@problem
def mlp_in_double_with_byte_labels() -> Problem:
    y = labels(9, 4).to(torch.uint8)
    return Problem(Mlp().double(), torch.randn(9, 6).double(), y, 4, ("head", "fc1.weight"))


@problem
def mlp_named_head_transposed_input() -> Problem:
    model = Mlp()
    model.extra = nn.Linear(2, 2)  # registered last, never used
    return Problem(model, torch.randn(6, 9).T, labels(9, 4), 4, ("head", "all", "extra.*,fc2.*"), "fc2")


@problem
def one_sample() -> Problem:
    return Problem(Mlp(), torch.randn(1, 6), torch.tensor([2]), 4, ("head", "all"))


@problem
def linear_alone() -> Problem:
    return Problem(nn.Linear(5, 3), torch.randn(8, 5), labels(8, 3), 3, ("head", "all"))


@problem
def cnn_batchnorm() -> Problem:
    model = Cnn(nn.BatchNorm2d)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    nn.init.normal_(model.norm.weight)
    return Problem(model, torch.randn(11, 2, 6, 6), labels(11, 3), 3, ("head", "all", "norm.*,conv1.weight"))


@problem
def cnn_groupnorm() -> Problem:
    return Problem(
        Cnn(lambda c: nn.GroupNorm(2, c)), torch.randn(7, 2, 5, 5), labels(7, 3), 3, ("head", "all")
    )


@problem
def layernorm() -> Problem:
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))
    return Problem(model, torch.randn(9, 5), labels(9, 3), 3, ("head", "all", "1.*"))


@problem
def tied_head() -> Problem:
    return Problem(TiedHead(), torch.randn(7, 6), labels(7, 6), 6, ("head", "all", "encoder.weight"))


@problem
def tied_body() -> Problem:
    return Problem(TiedBody(), torch.randn(7, 5), labels(7, 3), 3, ("head", "all", "b.weight"))


@problem
def frozen_body() -> Problem:
    model = Mlp()
    model.fc1.requires_grad_(False)
    model.fc2.bias.requires_grad_(False)
    return Problem(model, torch.randn(8, 6), labels(8, 4), 4, ("head", "all"))


@problem
def layers_called_twice() -> Problem:
    return Problem(Reused(), torch.randn(7, 5), labels(7, 5), 5, ("head", "all", "inner.*"))


@problem
def head_weight_used_outside_it() -> Problem:
    return Problem(FunctionalReuse(), torch.randn(7, 4), labels(7, 4), 4, ("head",))


@problem
def head_over_a_sequence() -> Problem:
    return Problem(PooledHead(), torch.randn(7, 3, 4), labels(7, 3), 3, ("head",))


@problem
def text_lstm() -> Problem:
    return Problem(
        TextLstm(), torch.randint(0, 11, (7, 4)), labels(7, 3), 3, ("head", "all", "lstm.*", "embed.*")
    )


@problem
def text_transformer() -> Problem:
    return Problem(
        TextTransformer(), torch.randint(0, 11, (6, 4)), labels(6, 3), 3, ("head", "all", "encoder.*"), "fc"
    )


@problem
def branching_with_unused_parameter() -> Problem:
    return Problem(Branching(), torch.randn(7, 5), labels(7, 4), 4, ("head", "all", "unused,a.bias"))
