"""Models for pictures, of torchvision: at 224 pixels as they are there, adapted to small ones by their stems.

Every builder takes the pictures' shape, the number of classes, and whether the smaller variant is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision import models

from simulations.datasets.bundle import Inputs
from simulations.models.errors import ModelError
from simulations.models.layers import enlarge, he_normal, remake, replace

SMALL_PICTURE = 64  # pixels: up to here stems keep the resolution


def resnet18(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """ResNet-18 (He et al., CVPR 2016, arXiv 1512.03385); small: a quarter as wide.

    Pictures of up to 64 pixels get the stem of the authors' CIFAR-10 networks: a 3x3 convolution, no pooling.
    """
    channels, height, width = inputs.shape
    with torch.device("meta"):
        model: nn.Module = models.resnet18(num_classes=num_classes)
    remake(model, channels, divide=4 if small else 1)
    if max(height, width) <= SMALL_PICTURE:
        model.conv1 = nn.Conv2d(channels, 16 if small else 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    he_normal(model, "fan_out")
    return model


def alexnet(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """AlexNet as in torchvision (Krizhevsky 2014, arXiv 1404.5997); small: half as wide, 256 hidden units.

    Its strides need 63 pixels: smaller pictures are enlarged to 64. Features that come out smaller than 6x6
    are not repeated to fill 6x6, so that the first linear layer has an input for each of them only. Its
    initial weights are those of He et al. 2015: with torchvision's smaller ones it hardly learns at first.
    """
    channels, height, width = inputs.shape
    with torch.device("meta"):
        model: nn.Module = models.alexnet(num_classes=num_classes)
        enlarge(model, 64, height, width)
        pool = _pool(model, height, width, 6)
    remake(
        model,
        channels,
        divide=2 if small else 1,
        hidden=256 if small else None,
        positions=(36, pool[0] * pool[1]),
    )
    model.avgpool = nn.AdaptiveAvgPool2d(pool)
    he_normal(model, "fan_in")
    *inner, _ = (m for m in model.modules() if isinstance(m, nn.Linear))
    for layer in inner:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return model


def vgg16(inputs: Inputs, num_classes: int, small: bool, *, batch_norm: bool = False) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015, arXiv 1409.1556); small: a quarter as wide, 256 hidden units.

    Its five poolings need 32 pixels: smaller pictures are enlarged to that. Features that come out smaller
    than 7x7 are not repeated to fill 7x7.
    """
    channels, height, width = inputs.shape
    with torch.device("meta"):
        plain = models.vgg16_bn if batch_norm else models.vgg16
        model: nn.Module = plain(num_classes=num_classes)
        enlarge(model, 32, height, width)
        pool = _pool(model, height, width, 7)
    before = [m.in_features for m in model.modules() if isinstance(m, nn.Linear)]
    remake(
        model,
        channels,
        divide=4 if small else 1,
        hidden=256 if small else None,
        positions=(49, pool[0] * pool[1]),
    )
    model.avgpool = nn.AdaptiveAvgPool2d(pool)
    he_normal(model, "fan_out")
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer, wide in zip(linear, before, strict=True):
        # N(0, 0.01²) in torchvision; with fewer inputs so much more that the outputs are as large.
        nn.init.normal_(layer.weight, 0.0, 0.01 * (wide / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    return model


def densenet161(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """DenseNet-161 (Huang et al., CVPR 2017, arXiv 1608.06993).

    Small: blocks of a sixth of the layers, a quarter as wide. Pictures of up to 64 pixels get the stem of the
    authors' CIFAR networks: a 3x3 convolution, no pooling.
    """
    channels, height, width = inputs.shape
    stem = max(height, width) <= SMALL_PICTURE
    _at_least("densenet161", 8 if stem else 29, inputs)
    growth, blocks, width = (12, (1, 2, 6, 4), 24) if small else (48, (6, 12, 36, 24), 96)
    with torch.device("meta"):
        model: nn.Module = models.DenseNet(growth, blocks, width, num_classes=num_classes)
    remake(model, channels)
    if stem:
        replace(model, "features.conv0", nn.Conv2d(channels, width, 3, padding=1, bias=False))
        replace(model, "features.pool0", nn.Identity())
    he_normal(model, "fan_in")
    nn.init.zeros_(model.get_parameter("classifier.bias"))
    return model


def vit(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """Vision transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929); its class token gives the logits.

    Above 64 pixels ViT-B/16. Up to there about 8 x 8 patches and the sizes of DeiT-S (Touvron et al. 2021,
    arXiv 2012.12877). Small: always about 8 x 8 patches, 4 layers, 96 wide.
    """
    channels, height, width = inputs.shape
    if height != width:
        raise ModelError(f"vit takes square pictures, got {height} x {width}: crop or resize them")
    _at_least("vit", 4, inputs)
    if small:
        patch, layers, heads, hidden, mlp = _patch(height), 4, 4, 96, 192
    elif height <= SMALL_PICTURE:
        patch, layers, heads, hidden, mlp = _patch(height), 12, 6, 384, 1536
    elif height % 16:
        raise ModelError(f"vit above {SMALL_PICTURE} pixels has patches of 16 x 16, got a side of {height}")
    else:
        patch, layers, heads, hidden, mlp = 16, 12, 12, 768, 3072
    model: nn.Module = models.VisionTransformer(
        height, patch, layers, heads, hidden, mlp, num_classes=num_classes
    )
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, hidden, patch, patch)
        nn.init.trunc_normal_(model.get_parameter("conv_proj.weight"), std=(channels * patch * patch) ** -0.5)
        nn.init.zeros_(model.get_parameter("conv_proj.bias"))
    return model


def mlp(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """One hidden layer: 256 units, small 64; for tests and for the digits."""
    channels, height, width = inputs.shape
    hidden = 64 if small else 256
    hidden_layer = nn.Linear(channels * height * width, hidden)
    return nn.Sequential(nn.Flatten(), hidden_layer, nn.ReLU(), nn.Linear(hidden, num_classes))


def _at_least(name: str, side: int, inputs: Inputs) -> None:
    _, height, width = inputs.shape
    if min(height, width) < side:
        raise ModelError(f"{name} takes pictures of {side} x {side} pixels or more, got {height} x {width}")


def _pool(model: nn.Module, height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width of the features before the linear layers; the model is on the meta device."""
    out: Tensor = model.get_submodule("features")(torch.empty(2, 3, height, width))
    return min(most, out.shape[2]), min(most, out.shape[3])


def _patch(side: int) -> int:
    """Side of a patch: ``side`` over 4 to 16, as near to 8 as can be; one pixel only if there is no other."""
    fits = [p for p in range(1, side + 1) if side % p == 0 and 4 <= side // p <= 16]
    if not fits:
        raise ModelError(
            f"vit cuts a side into 4 to 16 equal patches, which {side} pixels do not allow: resize the "
            f"pictures, for example to {side + -side % 8}"
        )
    return min(fits, key=lambda p: (p == 1, abs(side // p - 8)))


PICTURES: dict[str, Callable[[Inputs, int, bool], nn.Module]] = {
    "resnet18": resnet18,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "vgg16_bn": partial(vgg16, batch_norm=True),
    "densenet161": densenet161,
    "vit": vit,
    "mlp": mlp,
}
"""Models for pictures, by name; torchvision's names."""
