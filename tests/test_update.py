"""Updates that erase: applied to models, against the layer's output; as bytes; malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases_records import JSON, SPEC
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from fl_unlearn.dampen import Entry, apply_to_module, apply_update, build_update
from fl_unlearn.erase import erasure
from fl_unlearn.erase_layers import find_layers, folded
from fl_unlearn.layer_stats import layer_sums
from fl_unlearn.types import REST, AlreadyAppliedError, EraseError, UpdateError, signature_of
from fl_unlearn.update import FORMAT, FORMAT_ERASING, DampeningUpdate

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (5,), "0"),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(80, 3)
        ),
        (2, 4, 4),
        "0",
    ),
    "conv and norm": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 5, 3, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
        ),
        (2, 6),
        "1",
    ),
}


def case(net: str, strength: float = 1.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor, DampeningUpdate]:
    """A model, its data, and the update that erases class 1 in its hidden layer and dampens one element."""
    make, shape, _ = NETS[net]
    torch.manual_seed(0)
    model, y = make(), torch.arange(60) % 3
    x = torch.randn(60, *shape) + y.reshape(-1, *[1] * len(shape))
    if isinstance(model[1], nn.BatchNorm1d):
        model.train()(3 * x)  # statistics that are not those of the data
    model.double().eval()
    x = x.double()
    (hidden,) = find_layers(model, x[:2])
    made = erasure(layer_sums(model, [(x, y)], [hidden.layer], [1])[hidden.layer], [1], strength=strength)
    signature = signature_of(model.state_dict())
    head = f"{len(model) - 1}.bias"
    entry = Entry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.5]), signature[head])
    layers = {hidden.layer: folded(hidden, made, signature)}
    return model, x, y, DampeningUpdate({head: entry}, 5.0, 1.0, layers)


def output(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """A layer's outputs, channels last."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(layer)
    hook = module.register_forward_hook(lambda _, __, z: seen.append(z.detach().clone()))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0] if seen[0].ndim == 2 else seen[0].movedim(1, -1).reshape(-1, seen[0].shape[1])


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_layers_output_is_mapped(net: str, strength: float) -> None:
    """Where the shift goes to a normalisation, its output is that of the mapped input."""
    model, x, _, update = case(net, strength)
    (erased,) = update.erasures.values()
    e, before = erased.erasure, output(model, "0", x)
    dense = torch.eye(len(e.mean), dtype=torch.float64) - strength * e.a @ e.b.T
    expected = (before - e.mean) @ dense.T + e.mean
    if NETS[net][2] == "1":
        norm = model[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        expected = (expected - norm.running_mean) * scale + norm.bias
    model.load_state_dict(apply_update(model.state_dict(), update))
    assert_close(output(model, NETS[net][2], x), expected.detach())


@pytest.mark.parametrize("net", NETS)
def test_after_the_update_the_class_is_not_in_the_output(net: str) -> None:
    model, x, y, update = case(net)
    before = layer_sums(model, [(x, y)], ["0"], [1])["0"]
    old = {n: t.clone() for n, t in model.state_dict().items()}
    apply_to_module(model, update)
    after = layer_sums(model, [(x, y)], ["0"], [1])["0"]

    def apart(s: Any) -> torch.Tensor:
        return s.sums[1] / s.counts[1] - s.sums[REST] / s.counts[REST]

    assert float(apart(before).norm()) > 0.05
    assert_close(apart(after), torch.zeros_like(apart(after)), atol=1e-9, rtol=0)
    assert {n for n, t in model.state_dict().items() if not torch.equal(t, old[n])} == set(update.changes)
    with pytest.raises(AlreadyAppliedError):
        apply_to_module(model, update)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_is_computed_in_float64(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_unlearn.dampen._PIECE", 12)  # a weight goes in several pieces
    model, _, _, update = case("conv")
    state = {n: t.to(dtype) for n, t in model.state_dict().items()}
    got = apply_update(state, update)
    exact = apply_update({n: t.double() for n, t in state.items()}, update)
    for name in update.changes:
        assert got[name].dtype == dtype
        assert_close(got[name], exact[name].to(dtype), atol=0, rtol=0)
    in_place = {n: t.clone() for n, t in state.items()}
    held = dict(in_place)
    apply_update(in_place, update, in_place=True)
    for name, tensor in got.items():
        assert_close(held[name], tensor, atol=0, rtol=0)


def test_an_erased_tensor_may_be_dampened_too() -> None:
    model, _, _, update = case("linear")
    state = model.state_dict()
    entry = Entry(torch.tensor([3]), torch.tensor([0.25]), signature_of(state)["0.weight"])
    both = replace(update, entries={"0.weight": entry, **update.entries})
    expected = apply_update(state, update)["0.weight"].clone()
    expected.view(-1)[3] *= 0.25
    assert_close(apply_update(state, both)["0.weight"], expected)
    assert DampeningUpdate.from_bytes(both.to_bytes()).digest == both.digest


def test_variants_keep_the_erasures() -> None:
    model, _, _, update = case("linear")
    fisher = {n: torch.rand(t.shape) for n, t in model.state_dict().items() if n.startswith("2.")}
    base = build_update(
        fisher,
        {n: t / 4 for n, t in fisher.items()},
        threshold=1,
        signature=signature_of(model.state_dict()),
        erasures=update.erasures,
    )
    some, none = base.variant(2.0, 0.5), base.variant(9.0)
    assert some.erasures == none.erasures == update.erasures
    assert some.selected
    assert not none.selected
    assert not none.empty
    assert DampeningUpdate({}, 1.0).empty


def test_bytes_there_and_back() -> None:
    *_, update = case("conv and norm", strength=0.5)
    again = DampeningUpdate.from_bytes(update.to_bytes())
    assert again.digest == update.digest
    assert again.header() == update.header()
    ((layer, old),) = update.erasures.items()
    new = again.erasures[layer]
    assert replace(new, erasure=old.erasure) == old
    assert_close(
        [new.erasure.a, new.erasure.b, new.erasure.mean], [old.erasure.a, old.erasure.b, old.erasure.mean]
    )
    other = replace(old, erasure=replace(old.erasure, mean=old.erasure.mean + 1))
    assert replace(update, erasures={layer: other}).digest != update.digest
    plain = replace(update, erasures={})
    assert (json.loads(update.header())["format"], json.loads(plain.header())["format"]) == (
        FORMAT_ERASING,
        FORMAT,
    )


def test_other_names_of_the_same_tensors() -> None:
    model, _, _, update = case("conv and norm")
    numbers = {n: str(i) for i, n in enumerate(model.state_dict())}
    renamed = update.renamed(numbers)
    expected = apply_update(model.state_dict(), update)
    got = apply_update({numbers[n]: t for n, t in model.state_dict().items()}, renamed)
    assert_close({n: got[numbers[n]] for n in numbers}, dict(expected), atol=0, rtol=0)
    del numbers["1.running_mean"]
    with pytest.raises(UpdateError, match=r"does not have: \['1.running_mean'\]"):
        update.renamed(numbers)


def test_a_model_that_does_not_fit_is_left_alone() -> None:
    model, _, _, update = case("linear")
    state = model.state_dict()
    for bad in (
        {n: t for n, t in state.items() if n != "0.bias"},
        {**state, "0.weight": state["0.weight"][:, :3]},
        {**state, "0.weight": state["0.weight"].long()},
    ):
        before = {n: t.clone() for n, t in bad.items()}
        with pytest.raises(UpdateError, match=r"0\.(bias|weight)"):
            apply_update(bad, update, in_place=True)
        assert_close(bad, before, atol=0, rtol=0)
    (hidden,) = find_layers(model, torch.zeros(1, 5, dtype=torch.float64))
    erased = update.erasures["0"].erasure
    for signature in (
        signature_of({"0.weight": state["0.weight"]}),
        signature_of({**state, "0.bias": state["2.bias"]}),
    ):
        with pytest.raises(EraseError, match="does not fit"):
            folded(hidden, erased, signature)


def changed(header: str, **values: Any) -> str:
    plain = json.loads(header)
    plain["erasures"]["0"] |= values
    return json.dumps(plain)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda h, t: (h.replace(FORMAT_ERASING, FORMAT), t),
        lambda h, t: (h.replace(FORMAT_ERASING, "fl-unlearn-update/3"), t),
        lambda h, t: (json.dumps({**json.loads(h), "erasures": {}}), {n: t[n] for n in t if n[0] in "if"}),
        lambda h, t: (json.dumps({**json.loads(h), "erasures": [1]}), t),
        lambda h, t: (changed(h, strength=0), t),
        lambda h, t: (changed(h, strength=1.5), t),
        lambda h, t: (changed(h, strength="1"), t),
        lambda h, t: (changed(h, weight=3), t),
        lambda h, t: (changed(h, shift="0.weight"), t),
        lambda h, t: (changed(h, shift_is="weight"), t),
        lambda h, t: (changed(h, weight_spec={"shape": [6, 5], "dtype": "int64"}), t),
        lambda h, t: (changed(h, weight_spec={"shape": [7, 5], "dtype": "float32"}), t),
        lambda h, t: (changed(h, weight_spec={"shape": [6], "dtype": "float32"}), t),
        lambda h, t: (changed(h, shift_spec={"shape": [6, 1], "dtype": "float32"}), t),
        lambda h, t: (changed(h, weight="2.bias", weight_spec={"shape": [6, 3], "dtype": "float32"}), t),
        lambda h, t: (h, {n: v for n, v in t.items() if n != "m/0"}),
        lambda h, t: (h, {**t, "a/1": t["a/0"]}),
        lambda h, t: (h, {**t, "a/0": t["a/0"] * 2}),
        lambda h, t: (h, {**t, "a/0": t["a/0"].float()}),
        lambda h, t: (h, {**t, "m/0": t["m/0"] * float("inf")}),
        lambda h, t: (h, {**t, "m/0": t["m/0"][:-1]}),
        lambda h, t: (h, {**t, "a/0": t["a/0"][:, :0], "b/0": t["b/0"][:, :0]}),
        lambda h, t: (h, {**t, "a/0": t["a/0"].repeat(1, 7), "b/0": t["b/0"].repeat(1, 7)}),
    ],
)
def test_malformed_erasures_are_refused(spoil: Callable[..., Any]) -> None:
    *_, update = case("linear")
    DampeningUpdate.from_tensors(update.header(), update.to_tensors())
    with pytest.raises(UpdateError):
        DampeningUpdate.from_tensors(*spoil(update.header(), update.to_tensors()))


FIELDS = ["weight", "weight_spec", "shift", "shift_is", "shift_spec", "strength"]


@given(values=st.dictionaries(st.sampled_from(FIELDS), JSON | SPEC, min_size=1, max_size=2) | JSON)
@settings(max_examples=200, deadline=None)
def test_wild_erasures(values: Any) -> None:
    *_, update = case("linear")
    plain = json.loads(update.header())
    layer = plain["erasures"]["0"]
    plain["erasures"] = {"0": {**layer, **values}} if isinstance(values, dict) else values
    try:
        got = DampeningUpdate.from_tensors(json.dumps(plain), update.to_tensors())
    except UpdateError:
        return
    assert len(got.digest) == 64


def test_two_erasures_of_one_tensor_are_refused() -> None:
    *_, update = case("linear")
    twice = replace(update, erasures={"0": update.erasures["0"], "1": update.erasures["0"]})
    with pytest.raises(UpdateError, match="two erasures"):
        DampeningUpdate.from_tensors(twice.header(), twice.to_tensors())
