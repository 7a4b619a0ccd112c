"""Networks whose squared gradients come from one forward and one backward pass, with data."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune

CLASSES = 3
Case = tuple[nn.Module, Tensor]

NETWORKS: dict[str, Callable[[], Case]] = {}


def network(make: Callable[[], Case], name: str = "") -> Callable[[], Case]:
    def seeded() -> Case:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model, x = make()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
                if getattr(module, "affine", False) or isinstance(module, nn.LayerNorm | nn.RMSNorm):
                    nn.init.normal_(module.weight)
            model.eval()
            with torch.no_grad():
                model(x)  # pruning keeps the last weight, and a copy of the model needs it without a graph
        return model, x

    NETWORKS[name or make.__name__] = seeded
    return seeded


def labels(n: int) -> Tensor:
    return torch.arange(n) * 2 % CLASSES


class Fn(nn.Module):
    """A function as a module; ``parts`` are the modules and parameters that it uses."""

    def __init__(self, fn: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


# --------------------------------------------------------------------------- drawn at random
def drawn_convolutions(dims: int, seed: int) -> Case:
    """Two or three convolutions of drawn sizes, strides, paddings, dilations and groups, with norms."""
    draw = random.Random(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    size = (17, 11, 7)[dims - 1]
    channels, layers = draw.choice([2, 4]), []
    x = torch.randn(draw.choice([1, 3, 5]), channels, *(size + i for i in range(dims)))
    for _ in range(draw.choice([2, 3])):
        out, dilation = draw.choice([4, 6]), draw.choice([1, 2])
        padding = draw.choice([0, 1, "same", "valid"])
        stride = 1 if padding == "same" else draw.choice([1, 2])
        groups, mode = draw.choice([1, math.gcd(channels, out)]), draw.choice(["zeros", "reflect"])
        kernel = [draw.choice([1, 2, 3]) for _ in range(dims)]
        kernel = [k if i == 0 or dilation == 1 else 1 for i, k in enumerate(kernel)]
        layers.append(
            conv(channels, out, tuple(kernel), stride, padding, dilation, groups, draw.random() < 0.7, mode)
        )
        layers.append(draw.choice([norm(out), nn.GroupNorm(2, out), nn.Identity()]))
        layers.append(draw.choice([nn.ReLU(inplace=True), nn.Tanh(), nn.GELU()]))
        channels = out
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(channels, CLASSES)), x


def drawn_sequences(seed: int) -> Case:
    """Linear layers and norms on sequences, with some parameters frozen."""
    draw = random.Random(seed)
    width, layers = 5, []
    x = torch.randn(draw.choice([1, 2, 5]), *(draw.choice([2, 3]) for _ in range(draw.choice([1, 2]))), width)
    for _ in range(3):
        out = draw.choice([4, 6])
        layers += [
            nn.Linear(width, out, bias=draw.random() < 0.7),
            draw.choice([nn.LayerNorm(out), nn.RMSNorm(out)]),
        ]
        layers.append(draw.choice([nn.GELU(), nn.PReLU(), nn.ReLU(inplace=True)]))
        width = out
    model = nn.Sequential(
        *layers, Fn(lambda m, x: m.fc(x.flatten(1, -2).mean(1)), fc=nn.Linear(width, CLASSES))
    )
    for p in model.parameters():
        p.requires_grad_(draw.random() < 0.8)
    model[-1].fc.weight.requires_grad_(True)
    return model, x


for _seed in range(5):
    for _dims in (1, 2, 3):
        network(partial(drawn_convolutions, _dims, _seed), f"conv{_dims}d_{_seed}")
    network(partial(drawn_sequences, _seed), f"sequence_{_seed}")


# --------------------------------------------------------------------------- where the samples are
@network
def time_first() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = F.gelu(m.norm(m.a(x.transpose(0, 1)) + m.position))
        return m.fc(h[-1] * m.scale)

    parts = {"a": nn.Linear(4, 5), "norm": nn.LayerNorm(5), "fc": nn.Linear(5, CLASSES)}
    return Fn(forward, **parts, position=weight(3, 1, 5), scale=weight(5)), torch.randn(3, 3, 4)


@network
def samples_folded_with_frames() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = F.relu(m.norm(m.conv(x.flatten(0, 1))), inplace=True).mean((2, 3))
        return m.fc(torch.tanh(m.a(h) - m.shift).view(len(x), -1))

    parts = {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4), "a": nn.Linear(4, 4), "shift": weight(4)}
    return Fn(forward, **parts, fc=nn.Linear(8, CLASSES)), torch.randn(3, 2, 2, 5, 5)


@network
def as_many_steps_as_samples() -> Case:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4))
    return Fn(lambda m, x: m.fc(m.a(x).mean(1)), a=layer, fc=nn.Linear(4, CLASSES)), torch.randn(4, 4, 4)


# --------------------------------------------------------------------------- look-ups and tokens
@network
def tokens_with_positions_and_a_class_token() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = m.words(x) + m.places(torch.arange(x.shape[1]))
        h = torch.cat([m.token.expand(len(x), -1, -1), h], 1) + m.more
        return m.fc(torch.tanh(m.a(h))[:, 0] + 0.1 * h.mean(1))

    parts = {"words": nn.Embedding(9, 4, padding_idx=0), "places": nn.Embedding(6, 4), "a": nn.Linear(4, 4)}
    tokens = {"token": weight(1, 1, 4), "more": weight(1, 6, 4)}
    return Fn(forward, **parts, **tokens, fc=nn.Linear(4, CLASSES)), torch.randint(0, 9, (5, 5))


@network
def bags() -> Case:
    parts = {"a": nn.EmbeddingBag(7, 4, mode="mean"), "b": nn.EmbeddingBag(7, 4, mode="sum", padding_idx=1)}
    return Fn(lambda m, x: m.fc(torch.tanh(m.a(x) * m.b(x))), **parts, fc=nn.Linear(4, CLASSES)), (
        torch.randint(0, 7, (5, 6))
    )


# --------------------------------------------------------------------------- recurrent and attention
class Text(nn.Module):
    """A text classifier: embedding, a recurrent layer, a head on its last output."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, rnn.input_size, padding_idx=0)
        self.rnn = rnn
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.rnn.batch_first:
            return self.fc(self.rnn(h)[0].mean(1))
        return self.fc(self.rnn(h.transpose(0, 1))[0][-1])


def words(n: int = 3, length: int = 5) -> Tensor:
    return torch.randint(0, 11, (n, length))


@network
def lstm() -> Case:
    return Text(nn.LSTM(4, 3, batch_first=True)), words()


@network
def lstm_of_two_layers_both_ways_projected_time_first() -> Case:
    return Text(nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2)), words(5, 5)


@network
def gru_of_two_layers() -> Case:
    return Text(nn.GRU(4, 3, 2, batch_first=True)), words(1)


@network
def plain_recurrence() -> Case:
    return Text(nn.RNN(4, 3, bias=False)), words()


@network
def recurrent_cell() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            h = m.cell(step, h)
        return m.fc(h)

    return Fn(forward, cell=nn.GRUCell(4, 3), fc=nn.Linear(3, CLASSES)), torch.randn(4, 4, 4)


@network
def attention_to_other_sequences() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = m.b(x.transpose(0, 1), *[x.transpose(0, 1).flip(0)[..., :3]] * 2)[0][0]
        return m.fc(h + m.a(x, x, x, need_weights=False)[0][:, 0])

    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, add_bias_kv=True)
    parts = {"a": nn.MultiheadAttention(4, 2, batch_first=True), "b": attention, "fc": nn.Linear(4, CLASSES)}
    return Fn(forward, **parts), torch.randn(3, 3, 4)


@network
def transformer() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = m.embed(x) + m.places[:, : x.shape[1]]
        return m.fc(m.decoder(h[:, :2], m.encoder(h)).mean(1))

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 2)
    decoder = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True, norm_first=True)
    parts = {"embed": nn.Embedding(11, 4), "encoder": encoder, "decoder": decoder, "places": weight(1, 9, 4)}
    return Fn(forward, **parts, fc=nn.Linear(4, CLASSES)), words()


# --------------------------------------------------------------------------- used more than once
@network
def called_twice_with_different_shapes() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        return m.fc(torch.tanh(m.a(x)).mean(1) + m.a(x[:, 0]) + m.norm(m.a(x[:, :2]))[:, 1])

    return Fn(forward, a=nn.Linear(4, 4), norm=nn.LayerNorm(4), fc=nn.Linear(4, CLASSES)), torch.randn(
        3, 3, 4
    )


@network
def convolution_used_twice() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        return m.fc(m.conv(F.relu(m.norm(m.conv(x)))).mean((2, 3)))

    parts = {"conv": nn.Conv2d(3, 3, 3, padding=1), "norm": nn.InstanceNorm2d(3, affine=True)}
    return Fn(forward, **parts, fc=nn.Linear(3, CLASSES)), torch.randn(3, 3, 5, 5)


@network
def a_table_that_is_also_the_head() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        return torch.tanh(m.table(x)).mean(1) @ m.table.weight.t()

    return Fn(forward, table=nn.Embedding(CLASSES, 4)), torch.randint(0, CLASSES, (5, 4))


# --------------------------------------------------------------------------- parts and derived values
@network
def weight_in_three_parts() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w, b) for w, b in zip(m.w.chunk(3), m.b.chunk(3), strict=True))
        return m.fc(F.scaled_dot_product_attention(q, k, v).mean(1))

    return Fn(forward, w=weight(12, 4), b=weight(12), fc=nn.Linear(4, CLASSES)), torch.randn(3, 5, 4)


@network
def overlapping_parts() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, m.w[:4])), m.w[2:]) + m.w[0] @ m.w.t()[:, :1]

    return Fn(forward, w=weight(5, 4)), torch.randn(4, 4)


@network
def products_with_parameters() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = torch.addmm(m.b, x, m.a).mul(m.scale).sub(m.shift)
        return (m.scale * torch.tanh(h - m.shift)) @ m.c

    parts = {"a": weight(4, 6), "b": weight(6), "c": weight(6, CLASSES), "scale": weight(6)}
    return Fn(forward, **parts, shift=weight(1)), torch.randn(5, 4)


@network
def parametrised_weights() -> Case:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 4, 3)),
        nn.ReLU(inplace=True),
        parametrizations.spectral_norm(nn.Conv1d(4, 4, 2)),
        nn.Tanh(),
        nn.Flatten(),
        prune.random_unstructured(nn.Linear(16, CLASSES), "weight", 0.4),
    )
    return model, torch.randn(4, 2, 7)


# --------------------------------------------------------------------------- in place, and gradients cut
@network
def operations_in_place() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = F.relu_(m.norm(m.a(x)))
        k = m.b(h)
        k += h
        k = F.relu_(k.add_(m.shift))
        return m.fc(F.elu(k.mean((2, 3)), inplace=True))

    parts = {"a": nn.Conv2d(2, 4, 3, padding=1), "norm": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 4, 1)}
    return Fn(forward, **parts, shift=weight(4, 1, 1), fc=nn.Linear(4, CLASSES)), torch.randn(3, 2, 5, 5)


@network
def without_gradient_in_parts() -> Case:
    def forward(m: Fn, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.a(x)
        return m.c(torch.tanh(m.b(h)) + m.d(x).detach() + F.linear(x, m.b.weight.detach()))

    parts = {n: nn.Linear(4, 4) for n in "abd"}
    return Fn(forward, **parts, c=nn.Linear(4, CLASSES)), torch.randn(5, 4)
