"""The layers of a torchvision model made anew: for other channels, narrower, able to take one sample."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that does not fail on a single value a channel, of which there is no variance.

    A last batch of one sample, whose features are 1x1, is normalised by the running statistics instead,
    which stay as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, of shape (N, C, H, W)."""
        if self.training and input.numel() == self.num_features:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def remake(
    model: nn.Module,
    channels: int,
    *,
    divide: int = 1,
    hidden: int | None = None,
    positions: tuple[int, int] = (1, 1),
) -> None:
    """Make every convolution, batch norm and linear layer of a model anew, in place.

    The model may be on the meta device: what it was made with is all that counts. Layers keep their names;
    they get torch's default initial values.

    Args:
        model: Of torchvision, built of these layers alone as far as parameters go; its last linear layer is
            the head.
        channels: Of the pictures.
        divide: How many times narrower each layer becomes, but for the pictures' channels and the head's
            outputs.
        hidden: Width of the linear layers before the head, where it is not to be theirs over ``divide``.
        positions: Height times width of the features that the first linear layer sees: before, and now.
    """
    first, last, linear = True, 0, 0
    heads = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, old in list(model.named_modules()):
        new: nn.Module
        if isinstance(old, nn.Conv2d):
            inputs = channels if first else old.in_channels // divide
            first, bias = False, old.bias is not None
            window: dict[str, Any] = {n: getattr(old, n) for n in ("kernel_size", "stride", "padding")}
            new = nn.Conv2d(inputs, old.out_channels // divide, bias=bias, **window)
        elif isinstance(old, nn.BatchNorm2d):
            new = BatchNorm2d(old.num_features // divide)
        elif isinstance(old, nn.Linear):
            inputs = old.in_features // positions[0] * positions[1] // divide if linear == 0 else last
            last = old.out_features if name == heads[-1] else hidden or old.out_features // divide
            new, linear = nn.Linear(inputs, last), linear + 1
        else:
            continue
        replace(model, name, new)


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` where the module of that name is."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, new)


def enlarge(model: nn.Module, side: int, height: int, width: int) -> None:
    """Let a model's ``features`` enlarge pictures first, so that no side is below ``side`` pixels.

    Args:
        model: Its ``features`` are an ``nn.Sequential``, whose layers keep their names.
        side: The least that the model takes.
        height: Of the pictures.
        width: Of the pictures.
    """
    smallest = min(height, width)
    if smallest < side:
        size = (-(-side * height // smallest), -(-side * width // smallest))
        front = nn.Upsample(size=size, mode="bilinear")
        layers = model.get_submodule("features").named_children()
        model.features = nn.Sequential(OrderedDict([("enlarge", front), *layers]))


def he_normal(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Initial weights of the convolutions by He et al. 2015 (arXiv 1502.01852), biases 0.

    Args:
        model: Changed in place.
        mode: Whether what goes forward keeps its size, or what goes backward.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
