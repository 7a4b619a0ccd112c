"""The linear probe at the clients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from strategy_cases import trained
from torch import nn

import strategies
from fl_unlearn.metrics import METRICS
from fl_unlearn.metrics.drawing import LEAST
from fl_unlearn.metrics.probe import MOST
from fl_unlearn.types import MeasureError
from strategies.measuring import measure_all, subject_of

PROBE = METRICS["probe"]


def subject(index: int = 0, name: str = "digits-class"):
    case = trained(name)
    state = case.history.current()
    return subject_of(case.clients[index], state, state, 0)


def samples(part):
    batches = list(part)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_it_is_what_scikit_learn_finds_on_the_clients_own_data() -> None:
    case = trained()
    client, s = case.clients[1], subject(1)
    x, y = samples(client.batches("train"))
    rows = torch.cat([(y == c).nonzero()[:MOST, 0] for c in range(10)])
    x, y, (held_x, held_y) = x[rows], y[rows], samples(client.batches("held-out"))

    def features(images):
        body = torch.relu(s.model.fc(s.model.features(images).flatten(1)))
        return body.detach().double().numpy()

    mean, std = features(x).mean(0), features(x).std(0)
    std[std == 0] = 1
    slow = LogisticRegression(C=1 / (len(y) * 1e-3), tol=1e-8, max_iter=10_000)
    slow.fit((features(x) - mean) / std, y.numpy())
    right = torch.from_numpy(slow.predict((features(held_x) - mean) / std)) == held_y
    found = PROBE.measure(s)
    for key, own in (("probe-forget", held_y == 3), ("probe-retain", held_y != 3)):
        assert found[key].samples == int(own.sum())
        assert found[key].value == pytest.approx(right[own].double().mean().item(), abs=0.011)


def test_the_probe_does_not_care_what_the_head_says() -> None:
    case = trained()
    original = case.history.current()
    masked = strategies.get("mask").unlearn(case.federation(), case.history).state
    before, after = (measure_all(case.federation(), s, original, ["probe"]) for s in (original, masked))
    assert before == after
    assert before["probe-forget"].value > 0.9
    assert before["probe-retain"].value > 0.9


def test_features_without_the_class_give_chance() -> None:
    s = subject()
    with torch.no_grad():
        s.model.fc.weight.zero_()
        s.model.fc.bias.fill_(1)
    found = PROBE.measure(s)
    assert found["probe-forget"].value == 0, "the same for every picture: the most frequent class"
    assert found["probe-retain"].value < 0.5


def test_samples_of_the_class_are_left_as_they_are_where_a_client_has_few() -> None:
    s = subject()
    x, y = samples(s.forget)
    enough = PROBE.measure(replace(s, forget=[(x[:LEAST], y[:LEAST])]))
    assert "probe-forget" in enough
    with pytest.raises(
        MeasureError,
        match=f"at least {LEAST} .* of a forgotten class, and samples of others; a client has {LEAST - 1}",
    ):
        PROBE.measure(replace(s, forget=[(x[: LEAST - 1], y[: LEAST - 1])]))
    with pytest.raises(MeasureError, match="and samples of others"):
        PROBE.measure(replace(s, retained=[]))


def test_a_class_that_is_to_be_forgotten_and_hardly_owned_is_in_neither_number() -> None:
    s = replace(subject(), classes=(3, 4))
    x, y = samples(s.retained)
    few = replace(s, retained=[(x[y != 4], y[y != 4])])
    found, (_, held_y) = PROBE.measure(few), samples(s.held_out)
    assert found["probe-forget"].samples == int((held_y == 3).sum())
    assert found["probe-retain"].samples == int((torch.isin(held_y, y) & (held_y != 3) & (held_y != 4)).sum())


def test_without_a_class_or_a_head_there_is_a_reason() -> None:
    with pytest.raises(MeasureError, match="names no classes"):
        PROBE.measure(subject(0, "digits-client"))
    headless = replace(subject(), model=nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1)))
    with pytest.raises(MeasureError, match=r"no nn\.Linear"):
        PROBE.measure(headless)
