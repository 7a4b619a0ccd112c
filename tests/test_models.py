"""Models of the scenarios: what they take and give, and their heads."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_fisher import CLASSES
from cases_models import COLOUR, WORDS, inputs_of, same, samples, small
from references_models import gated_convolutions, lstm
from safetensors.torch import save_file
from test_fisher_onepass import equal_to_reference
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models as plain

from fl_unlearn.fisher import find_head
from simulations.datasets.bundle import Inputs
from simulations.models import MODELS, ModelError, build
from simulations.models.layers import BatchNorm2d
from simulations.models.pictures import PICTURES
from simulations.models.texts import TEXTS
from simulations.models.trainable import head_of

NEEDS_TRANSFORMERS = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: pip install 'fl-unlearn[bert]'"
)
NAMES = [pytest.param(n, marks=NEEDS_TRANSFORMERS) if n == "bert" else n for n in MODELS]
WORD_MODELS = [pytest.param(n, marks=NEEDS_TRANSFORMERS) if n == "bert" else n for n in TEXTS]


# --------------------------------------------------------------------------- every model
@pytest.mark.parametrize("name", NAMES)
def test_learns(name: str) -> None:
    model, x, y = small(name), samples(inputs_of(name), 6), torch.arange(6) % CLASSES
    assert model.training
    model.apply(lambda m: m.eval() if isinstance(m, nn.Dropout) else None)  # lest the loss goes up by chance
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(6):
        losses.append(cross_entropy(model(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_takes_a_batch_of_one(name: str) -> None:
    model, x = small(name), samples(inputs_of(name), 1)
    cross_entropy(model(x), torch.tensor([1])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_its_head_is_found(name: str) -> None:
    model = small(name).eval()
    found, head = find_head(model)
    assert found == head_of(model, inputs_of(name))
    answer = torch.randn(3, CLASSES)
    head.register_forward_hook(lambda *_: answer)
    assert model(samples(inputs_of(name), 3)) is answer


@pytest.mark.parametrize("name", NAMES)
def test_the_fisher_of_all_layers_needs_no_slow_way(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = small(name).double().eval()  # in float32 a pooling with a near tie may choose otherwise alone
    x = samples(inputs_of(name), 2)
    x = x if x.dtype == torch.int64 else x.double()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(find_head(model)[1].weight, 0, 0.3)  # a transformer's is 0, which hides its body
    for n, p in model.named_parameters():
        p.requires_grad_(
            not n.endswith("key.bias")
        )  # attention has no use for it: a gradient of rounding errors
    equal_to_reference(model, x, "normalized", caplog)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_the_random_state(name: str) -> None:
    assert same(small(name), small(name))
    assert not same(small(name), small(name, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_made(name: str) -> None:
    """Nothing is left on the meta device, and none is as it came from memory."""
    for tensor in small(name).state_dict().values():
        assert tensor.device.type == "cpu"
        assert bool(tensor.isfinite().all())
        assert float(tensor.double().abs().max()) < 300  # positions of BERT are counted


@pytest.mark.parametrize("inputs", [COLOUR, Inputs((1, 28, 28)), Inputs((2, 64, 64))], ids=str)
@pytest.mark.parametrize("name", PICTURES)
def test_takes_pictures_of_any_usual_size(name: str, inputs: Inputs) -> None:
    assert small(name, inputs).eval()(samples(inputs, 2)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "vgg16", "densenet161"])
def test_takes_oblong_pictures(name: str) -> None:
    inputs = Inputs((3, 20, 40))
    assert small(name, inputs).eval()(samples(inputs, 2)).shape == (2, CLASSES)


# --------------------------------------------------------------------------- torchvision's
@pytest.mark.parametrize(
    ("name", "parameters"),
    # As torchvision's documentation counts them.
    [
        ("resnet18", 11_689_512),
        ("alexnet", 61_100_840),
        ("vgg16", 138_357_544),
        ("vgg16_bn", 138_365_992),
        ("densenet161", 28_681_000),
        ("vit", 86_567_656),
    ],
)
def test_at_224_pixels_it_is_torchvisions(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(name, Inputs((3, 224, 224)), 1000)
        own = {"vit": "vit_b_16"}.get(name, name)
        expected = getattr(plain, own)()
    assert sum(p.numel() for p in model.parameters()) == parameters
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    assert shapes == {n: t.shape for n, t in expected.state_dict().items()}


def test_torchvisions_weights_give_torchvisions_logits(tmp_path: Path) -> None:
    inputs = Inputs((3, 80, 80))
    expected = plain.resnet18(num_classes=3).eval()
    save_file(expected.state_dict(), tmp_path / "weights.safetensors")
    got = build("resnet18", inputs, 3, weights=tmp_path / "weights.safetensors").eval()
    x = samples(inputs, 2)
    torch.testing.assert_close(got(x), expected(x))


def test_initial_weights_are_as_large_as_torchvisions() -> None:
    ours = dict(build("resnet18", Inputs((3, 80, 80)), 3).named_parameters())
    for name, theirs in plain.resnet18(num_classes=3).named_parameters():
        torch.testing.assert_close(
            ours[name].std(correction=0), theirs.std(correction=0), rtol=0.1, atol=0.05
        )


def test_batch_norm_is_torchs_but_for_a_single_value() -> None:
    ours, theirs, x = BatchNorm2d(3), nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(ours(x), theirs(x))
    assert same(ours, theirs)
    one = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(one)
    before = copy.deepcopy(ours)
    torch.testing.assert_close(ours(one), before.eval()(one))
    assert same(ours, before)


# --------------------------------------------------------------------------- texts
@pytest.mark.parametrize("name", WORD_MODELS)
def test_padding_makes_no_difference(name: str) -> None:
    model, x = small(name, Inputs((12,), 20)).eval(), samples(WORDS, 3)
    padded = torch.cat([x, torch.zeros(3, 5, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(padded), model(x))
    mixed = torch.cat([padded, samples(Inputs((12,), 20), 3)])
    torch.testing.assert_close(model(mixed)[:3], model(x))


@pytest.mark.parametrize("name", WORD_MODELS)
def test_a_text_may_be_empty(name: str) -> None:
    model = small(name).train()
    x = torch.cat([samples(WORDS, 2), torch.zeros(1, 7, dtype=torch.int64)])
    cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert bool(model.eval()(x).isfinite().all())


@pytest.mark.parametrize(("name", "reference"), [("lstm", lstm), ("gcnn", gated_convolutions)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_reference(name: str, reference: Any, seed: int) -> None:
    model, x = small(name, seed=seed).double().eval(), samples(WORDS, 4, seed)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.4] = 0  # anywhere
    for row, ids in zip(model(x), x.tolist(), strict=True):
        torch.testing.assert_close(row, reference(model, [i for i in ids if i]))


@NEEDS_TRANSFORMERS
def test_bert_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    model = small("bert").eval()
    expected = BertForSequenceClassification(model.bert.config)
    expected.num_labels, expected.classifier = CLASSES, nn.Linear(64, CLASSES)
    expected.eval().save_pretrained(tmp_path)
    x = samples(WORDS, 3)
    x[1, 4:] = 0
    got = build("bert", WORDS, CLASSES, size="small", weights=tmp_path).eval()
    torch.testing.assert_close(got(x), expected(input_ids=x, attention_mask=(x != 0).long()).logits)


def test_bert_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'fl-unlearn\[bert\]'"):
        build("bert", WORDS, 3)


# --------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("name", "inputs", "arguments", "message"),
    [
        ("resnet", COLOUR, {}, "unknown model 'resnet': the known ones are .*; did you mean 'resnet18'"),
        ("mlp", COLOUR, {"size": "smal"}, "unknown size 'smal': .* full, small; did you mean 'small'"),
        ("mlp", COLOUR, {"num_classes": 0}, "at least one class, got 0"),
        ("mlp", WORDS, {}, r"mlp takes pictures .* \(7,\) with a vocabulary of 20; for texts there are lstm"),
        ("lstm", COLOUR, {}, r"lstm takes texts .* for pictures there are resnet18"),
        ("mlp", Inputs((3, 0, 8)), {}, "must be 1 or more"),
        (
            "densenet161",
            Inputs((1, 7, 7)),
            {},
            "densenet161 takes pictures of 8 x 8 pixels or more, got 7 x 7",
        ),
        ("vit", Inputs((1, 3, 3)), {}, "vit takes pictures of 4 x 4 pixels or more"),
        ("vit", Inputs((1, 8, 9)), {}, "square pictures, got 8 x 9"),
        ("vit", Inputs((1, 31, 31)), {}, "31 pixels do not allow: .* for example to 32"),
        ("vit", Inputs((1, 100, 100)), {"size": "full"}, "patches of 16 x 16, got a side of 100"),
    ],
)
def test_what_cannot_be_built_is_refused(
    name: str, inputs: Inputs, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, inputs, **{"num_classes": 3, "size": "small", **arguments})
