"""Whole architectures, small: squared gradients from one pass against the slow reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases_fisher import CLASSES
from test_fisher_onepass import equal_to_reference
from torch import nn
from torchvision import models


def vgg() -> nn.Module:
    model = models.VGG(models.vgg.make_layers([4, "M", 8, "M"], batch_norm=True), CLASSES, init_weights=False)
    return with_classifier(model, 8 * 49)


def alexnet() -> nn.Module:
    with torch.device("meta"):  # its own classifier has 55 million weights
        model = models.AlexNet(CLASSES)
    model.to_empty(device="cpu")
    for module in model.features:
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return with_classifier(model, 256 * 36)


def with_classifier(model: nn.Module, inputs: int) -> nn.Module:
    """With a narrow classifier, dropout and activations in place as in the original."""
    hidden = (nn.Linear(inputs, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(True), nn.Dropout())
    model.classifier = nn.Sequential(*hidden, nn.Linear(6, CLASSES))
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: models.resnet18(num_classes=CLASSES), (2, 3, 32, 32)),
    "vit": (lambda: models.VisionTransformer(16, 4, 2, 2, 8, 12, num_classes=CLASSES), (3, 3, 16, 16)),
    "densenet": (lambda: models.DenseNet(4, (2, 2), 8, num_classes=CLASSES), (3, 3, 32, 32)),
    "vgg": (vgg, (3, 3, 16, 16)),
    "alexnet": (alexnet, (2, 3, 64, 64)),
    "mobilenet": (lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.25), (3, 3, 32, 32)),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 4, [2, 2], [2, 2], [2, 2], num_classes=CLASSES),
        (3, 3, 16, 16),
    ),
    "convnext": (
        lambda: models.ConvNeXt([models.convnext.CNBlockConfig(4, None, 2)], num_classes=CLASSES),
        (3, 3, 16, 16),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_reference(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model, x = make().eval(), torch.randn(shape)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
    equal_to_reference(model, x, "normalized", caplog)
