"""Noise, impair, repair: the tasks of the clients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_teaching import reference_noise_loss
from strategy_cases import trained
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from fl_unlearn.types import ForgetRequest
from strategies import tasks
from strategies.client import Client
from strategies.errors import StrategyError
from strategies.impairing import noise_loss, noise_rows

NOISE = {"samples": 4, "steps": 40, "lr": 0.1, "penalty": 0.1, "seed": 0}


@given(seed=st.integers(0, 10_000), samples=st.integers(1, 5))
def test_the_loss_of_noise_is_that_of_the_paper(seed: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (samples,), generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    expected = reference_noise_loss(model(x).detach(), x, y, 0.1)
    assert noise_loss(model, x, y, 0.1).item() == pytest.approx(expected)


def test_noise_raises_the_error_on_the_class_that_the_client_owns() -> None:
    case = trained()
    client, model = case.clients[0], case.clients[0].model(case.history.current())
    noise = tasks.run("impairing.noise", client, {"model": case.history.current()}, NOISE).tensors["noise"]
    start = tasks.run(
        "impairing.noise", client, {"model": case.history.current()}, {**NOISE, "steps": 0}
    ).tensors["noise"]
    assert noise["inputs"].shape == (4, 1, 8, 8)
    assert noise["labels"].tolist() == [3, 3, 3, 3]
    with torch.no_grad():
        first, last = (cross_entropy(model(n["inputs"]), n["labels"]) for n in (start, noise))
    assert last > first + 5


def test_no_real_sample_is_in_the_noise() -> None:
    case = trained()
    answers = case.federation().ask("impairing.noise", {"model": case.history.current()}, NOISE)
    inputs = [a.tensors["noise"]["inputs"] for a in answers.values()]
    for client, own in zip(case.clients, inputs, strict=True):
        real = client.dataset("forget").tensors[0].flatten(1)
        assert torch.cdist(own.flatten(1), real).min() > 1
    assert not torch.equal(inputs[0], inputs[1])


def test_noise_comes_in_turn_as_often_as_it_takes() -> None:
    rows = noise_rows(torch.tensor([1, 5, 1, 1]), 5)
    assert rows.tolist() == [0, 2, 3, 0, 2, 1, 1, 1, 1, 1]


def test_noise_for_words_is_refused() -> None:
    words = TensorDataset(torch.zeros(6, 2, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 1, 1]))
    client = Client("0", 0, lambda: nn.Linear(2, 2), words, words, ForgetRequest((1,)))
    with pytest.raises(StrategyError, match=r"real numbers, got torch\.int64"):
        tasks.run("impairing.noise", client, {"model": nn.Linear(2, 2).state_dict()}, NOISE)


def test_a_client_with_nothing_to_keep_sits_out() -> None:
    case = trained("digits-client")
    answer = tasks.run("impairing.train", case.clients[0], {"model": case.history.current()}, {})
    assert answer.samples == 0
    assert not answer.tensors


def test_in_curriculum_the_epoch_goes_from_confident_to_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model is trained on, in its order, seen from inside the training."""
    import strategies.impairing as impairing

    case = trained()
    client, state = case.clients[0], case.history.current()
    seen: list[torch.Tensor] = []

    def watched(model, batches, optimizer, **rest):
        seen.extend(x for x, _ in batches)
        return 0.0

    monkeypatch.setattr(impairing, "fit", watched)
    settings = {"share": 0.1, "epochs": 1, "lr": 0.1, "batch-size": 32, "seed": 0, "round": 6}

    def confidence(**tensors) -> torch.Tensor:
        seen.clear()
        tasks.run("impairing.train", client, {"model": state, **tensors}, settings)
        with torch.no_grad():
            return client.model(state)(torch.cat(seen)).softmax(1).amax(1)

    assert bool(confidence(original=state).diff().le(1e-6).all())
    assert not bool(confidence().diff().le(1e-6).all())
    far = torch.full((2, 1, 8, 8), 9.0)
    noise = {"inputs": far, "labels": torch.tensor([3, 3])}
    mixed = confidence(original=state, noise=noise)
    real = torch.cat(seen).amax((1, 2, 3)) != 9.0
    assert (~real).sum() == round(0.1 * client.count("retained"))
    assert bool(mixed[real].diff().le(1e-6).all())
