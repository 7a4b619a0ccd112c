"""Centring a head: it changes no probability, and decides what bringing a logit to 0 leads to."""

from collections.abc import Collection

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_unlearn import apply_update, build_update
from fl_unlearn.centring import centred, head_among
from fl_unlearn.types import SettingsError, UpdateError, signature_of
from fl_unlearn.update import DampeningUpdate
from fl_unlearn.verify import score_candidates, score_state


def model(classes: int, seed: int, shift: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, classes))
    with torch.no_grad():
        made[2].bias += shift
    return made


def after(before: nn.Module, forget: Collection[int]) -> nn.Module:
    signature = signature_of(before.state_dict())
    update = DampeningUpdate({}, 1.0, 1.0, centred("2", forget, signature))
    out = model(before[2].out_features, 0)
    out.load_state_dict(apply_update(before.state_dict(), update))
    return out


@given(st.integers(2, 7), st.integers(0, 100), st.floats(-50, 50), st.data())
def test_kept_logits_have_the_mean_0_and_no_probability_changes(classes, seed, shift, data):
    forget = data.draw(st.sets(st.integers(0, classes - 1), max_size=classes - 1))
    before = model(classes, seed, shift)
    x = torch.randn(6, 3)
    z, new = before(x), after(before, forget)(x)
    kept = [c for c in range(classes) if c not in forget]
    torch.testing.assert_close(new, z - z[:, kept].mean(dim=1, keepdim=True), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new.softmax(1), z.softmax(1), rtol=1e-3, atol=1e-5)


def test_where_other_logits_are_negative_a_class_brought_to_0_loses_only_when_centred():
    before = model(3, 1, shift=-30.0)
    with torch.no_grad():
        before[2].bias[0] += 60.0
    state, x = before.state_dict(), torch.randn(20, 3)
    assert before(x).argmax(1).tolist() == [0] * 20
    forget = {n: torch.zeros_like(state[n]) for n in ("2.weight", "2.bias")}
    reference = {n: torch.ones_like(t) for n, t in forget.items()}
    for n in forget:
        forget[n][0] = 1e9  # only class 0 depends on these
    winners = {}
    for centre in (False, True):
        signature = signature_of(state)
        erasures = centred("2", (0,), signature) if centre else None
        update = build_update(forget, reference, threshold=1.0, signature=signature, erasures=erasures)
        new = model(3, 0)
        new.load_state_dict(apply_update(state, update))
        winners[centre] = set(new(x).argmax(1).tolist())
    assert winners[False] == {0}
    assert 0 not in winners[True]


def test_candidates_are_scored_as_applied_ones_are():
    before = model(4, 3)
    batches = [(torch.randn(9, 3), torch.randint(0, 4, (9,))) for _ in range(2)]
    signature = signature_of(before.state_dict())
    forget = {n: torch.rand_like(before.state_dict()[n]) for n in ("2.weight", "2.bias")}
    reference = {n: torch.rand_like(t) for n, t in forget.items()}
    base = build_update(
        forget, reference, threshold=1.0, signature=signature, erasures=centred("2", (1,), signature)
    )
    candidates = [None, base, base.variant(3.0), base.variant(2.0, 0.5)]
    scores = score_candidates(before, batches, candidates)
    for candidate, score in zip(candidates, scores, strict=True):
        state = before.state_dict() if candidate is None else apply_update(before.state_dict(), candidate)
        expected = score_state(model(4, 0), state, batches)
        assert (score.correct, score.total) == (expected.correct, expected.total)
        assert score.loss == pytest.approx(expected.loss, rel=1e-5)


def test_a_head_is_named_by_the_settings_or_by_what_is_in_scope():
    assert head_among(["a.fc.weight", "a.fc.bias"], "head", None) == "a.fc"
    assert head_among(["weight", "bias"], "head", None) == ""
    assert head_among(["x.weight", "fc.weight"], "all", "fc") == "fc"
    with pytest.raises(SettingsError, match="name it"):
        head_among(["x.weight", "fc.weight"], "all", None)


def test_a_head_that_shares_its_weight_is_not_centred():
    for head in (None, "fc"):
        with pytest.raises(SettingsError, match="shared by 'embedding', 'fc'"):
            head_among(["embedding.weight", "fc.weight", "fc.bias"], "head", head)


def test_a_single_module_that_another_scope_names_is_not_taken_for_the_head():
    with pytest.raises(SettingsError, match=r"scope 'hidden\.\*' has parameters of 'hidden': name it"):
        head_among(["hidden.weight", "hidden.bias"], "hidden.*", None)


def test_what_cannot_be_centred_is_said():
    without_bias = nn.Sequential(nn.Linear(3, 2, bias=False))
    assert centred("0", (0,), signature_of(without_bias.state_dict())) == {}
    with pytest.raises(UpdateError, match=r"no 'fc.weight'"):
        centred("fc", (0,), signature_of(without_bias.state_dict()))
    with pytest.raises(UpdateError, match="all 2 classes"):
        centred("0", (0, 1), signature_of(nn.Sequential(nn.Linear(3, 2)).state_dict()))


def test_a_model_that_is_its_head_alone_is_centred():
    alone = nn.Linear(3, 4)
    signature = signature_of(alone.state_dict())
    update = DampeningUpdate({}, 1.0, 1.0, centred("", (2,), signature))
    state, x = apply_update(alone.state_dict(), update), torch.randn(5, 3)
    new = x @ state["weight"].T + state["bias"]
    torch.testing.assert_close(new[:, [0, 1, 3]].mean(1), torch.zeros(5), rtol=0, atol=1e-5)
