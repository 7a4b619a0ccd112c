"""The networks that the Fisher benchmark runs on: usual layers, small pictures, random weights and inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

CLASSES = 10
WORDS = 5000


class TextClassifier(nn.Module):
    """Embedding of 128, LSTM of 256, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of word numbers (N, length)."""
        z: Tensor = self.head(self.lstm(self.embedding(x))[0][:, -1])
        return z


@dataclass(frozen=True)
class Case:
    """A network and its input.

    Attributes:
        about: What it is, for the table.
        build: Makes the network.
        shape: Of one sample.
        words: Whether samples are word numbers.
        aim: All layers' Fisher may take this many times a forward and backward pass.
    """

    about: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    words: bool = False
    aim: float = 3.0

    def make(self, batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
        """The network in eval mode, inputs (N, *shape) and labels (N,), the same for the same arguments."""
        torch.manual_seed(0)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = False  # BackPACK and Opacus refuse it
        for p in model.parameters():
            if not p.any():  # torchvision's ViT starts with a head of zeros, behind which all gradients are 0
                nn.init.normal_(p, std=0.02)
        size = (batch, *self.shape)
        x = torch.randint(WORDS, size) if self.words else torch.randn(size)
        return model.eval().to(device), x.to(device), torch.randint(CLASSES, (batch,)).to(device)


def _mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for k, o in itertools.pairwise(sizes):
        layers += [nn.Linear(k, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


CASES = {
    "resnet18": Case(
        "torchvision's ResNet-18, 3x32x32",
        lambda: torchvision.models.resnet18(num_classes=CLASSES),
        (3, 32, 32),
        aim=5.0,
    ),
    "vit": Case(
        "torchvision's VisionTransformer, 3x32x32, patch 4, 6 layers of 192, 3 heads",
        lambda: torchvision.models.VisionTransformer(32, 4, 6, 3, 192, 768, num_classes=CLASSES),
        (3, 32, 32),
    ),
    "mlp": Case("784-1024-1024-10, ReLU", lambda: _mlp(784, 1024, 1024, CLASSES), (784,)),
    "lstm": Case("embedding 128, LSTM 256, 64 words", TextClassifier, (64,), words=True),
    "tiny": Case("6-5-10, to try this program", lambda: _mlp(6, 5, CLASSES), (6,)),
}
"""By name; "tiny" is for tests."""
