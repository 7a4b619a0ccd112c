import copy

import pytest
import references_update as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_unlearn.dampen import (
    DampeningUpdate,
    apply_to_module,
    apply_update,
    build_update,
)
from fl_unlearn.types import AlreadyAppliedError, UpdateError, signature_of

SHAPES = [(1,), (5,), (3, 4), (2, 3, 2), ()]


@st.composite
def problems(draw: st.DrawFn):
    seed = draw(st.integers(0, 10_000))
    g = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    names = draw(st.lists(st.sampled_from(["a", "b.weight", "ünï/ç o"]), min_size=1, unique=True))
    shapes = {n: draw(st.sampled_from(SHAPES)) for n in names}
    state = {n: torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for n, s in shapes.items()}
    state["steps"] = torch.tensor(3)
    forget = {n: torch.rand(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    # Zeros on either side are the edge cases of the ratio.
    ref = {
        n: torch.rand(s, generator=g, dtype=torch.float64) * (torch.rand(s, generator=g) > 0.3)
        for n, s in shapes.items()
    }
    forget = {n: t * (torch.rand(t.shape, generator=g) > 0.2) for n, t in forget.items()}
    return (
        state,
        forget,
        ref,
        draw(st.sampled_from([0.5, 1.0, 3.0, 50.0])),
        draw(st.sampled_from([0.5, 1.0, 2.0])),
    )


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {
        torch.float64: {"rtol": 1e-6, "atol": 1e-9},
        torch.float32: {"rtol": 1e-5, "atol": 1e-7},
        torch.float16: {"rtol": 2e-3, "atol": 1e-4},
        torch.bfloat16: {"rtol": 1e-2, "atol": 1e-3},
    }[dtype]


@given(problems())
def test_update_equals_reference(problem) -> None:
    state, forget, ref, t, lam = problem
    update = build_update(forget, ref, threshold=t, dampening=lam, signature=signature_of(state))
    before = copy.deepcopy(state)
    out = apply_update(state, update)
    expected = reference.dampened(state, forget, ref, t, lam)
    assert list(out) == list(state)
    for name, tensor in out.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(state[name], before[name]), "the pure form must not touch its input"
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], **tolerance(tensor.dtype))
        else:
            assert torch.equal(tensor, state[name])
    in_place = apply_update(before, update, in_place=True)
    for name in out:
        assert in_place[name] is before[name]
        assert torch.equal(before[name], out[name])


@given(problems())
def test_round_trip_digest_and_selection(problem) -> None:
    state, forget, ref, t, lam = problem
    update = build_update(forget, ref, threshold=t, dampening=lam, signature=signature_of(state))
    again = DampeningUpdate.from_bytes(update.to_bytes())
    assert again.digest == update.digest
    assert again.threshold == t
    assert again.entries.keys() == update.entries.keys()
    selected = sum(
        int(((forget[n] > t * ref[n]) & ((lam * ref[n] / forget[n]).float() < 1)).sum()) for n in forget
    )
    assert update.selected == selected
    for name, entry in update.entries.items():
        assert torch.equal(again.entries[name].indices, entry.indices)
        assert torch.equal(again.entries[name].factors, entry.factors)
        assert again.entries[name].spec == entry.spec


@given(problems(), st.sampled_from([1.0, 2.0, 7.0]), st.sampled_from([1.0, 0.5, 0.001]))
def test_variant_equals_building_anew(problem, factor: float, weaker: float) -> None:
    state, forget, ref, t, lam = problem
    signature = signature_of(state)
    base = build_update(forget, ref, threshold=t, dampening=lam, signature=signature)
    if t < lam and weaker != 1.0:
        with pytest.raises(UpdateError, match="does not contain"):
            base.variant(t * factor, lam * weaker)
        return
    variant = base.variant(t * factor, lam * weaker)
    anew = build_update(forget, ref, threshold=t * factor, dampening=lam * weaker, signature=signature)
    # At the border itself float32 factors may fall on either side; the cases drawn here do not lie on it.
    assert variant.entries.keys() == anew.entries.keys()
    for name, entry in anew.entries.items():
        assert torch.equal(variant.entries[name].indices, entry.indices)
        torch.testing.assert_close(variant.entries[name].factors, entry.factors, rtol=1e-6, atol=0)
    for bad in ((t / 2, lam), (t, lam * 2), (t, 0.0)):
        with pytest.raises(UpdateError, match="does not contain"):
            base.variant(*bad)


def simple() -> tuple[dict[str, torch.Tensor], DampeningUpdate]:
    state = {"w": torch.tensor([1.0, 2.0, 4.0]), "n": torch.tensor(1)}
    forget = {"w": torch.tensor([1.0, 8.0, 1.0])}
    ref = {"w": torch.tensor([1.0, 1.0, 0.0])}
    return state, build_update(forget, ref, threshold=2.0, signature=signature_of(state))


def test_hand_computed_case() -> None:
    state, update = simple()
    torch.testing.assert_close(apply_update(state, update)["w"], torch.tensor([1.0, 0.25, 0.0]))
    assert update.selected == 2


def test_a_model_gets_an_update_once() -> None:
    state, update = simple()
    with pytest.raises(AlreadyAppliedError, match="applied to this model before"):
        apply_update(state, update, applied=[update.digest])
    model = nn.Linear(3, 1, bias=False)
    forget, ref = {"weight": torch.tensor([[1.0, 8.0, 1.0]])}, {"weight": torch.tensor([[1.0, 1.0, 0.5]])}
    update = build_update(forget, ref, threshold=1.5, signature=signature_of(model.state_dict()))
    expected = model.weight.detach() * torch.tensor([[1.0, 0.125, 0.5]])
    apply_to_module(model, update)
    torch.testing.assert_close(model.weight.detach(), expected)
    with pytest.raises(AlreadyAppliedError):
        apply_to_module(model, update)
    with pytest.raises(AlreadyAppliedError):
        apply_to_module(copy.deepcopy(model), update)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_tied_tensors_are_dampened_once_in_place() -> None:
    weight = torch.ones(4)
    state = {"a": weight, "b": weight}
    fisher = {"a": torch.full((4,), 4.0), "b": torch.full((4,), 4.0)}
    update = build_update(
        fisher, {n: torch.ones(4) for n in fisher}, threshold=1, signature=signature_of(state)
    )
    pure = apply_update(state, update)
    torch.testing.assert_close(pure["a"], torch.full((4,), 0.25))
    torch.testing.assert_close(pure["b"], torch.full((4,), 0.25))
    apply_update(state, update, in_place=True)
    torch.testing.assert_close(weight, torch.full((4,), 0.25))


def test_non_contiguous_tensors_in_place() -> None:
    base = torch.arange(1.0, 7.0).reshape(2, 3)
    view = base.t()
    f = {"w": torch.full((3, 2), 2.0)}
    update = build_update(f, {"w": torch.ones(3, 2)}, threshold=1, signature=signature_of({"w": view}))
    apply_update({"w": view}, update, in_place=True)
    torch.testing.assert_close(base, torch.arange(1.0, 7.0).reshape(2, 3) / 2)


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    state, update = simple()
    for bad in ({"v": state["w"]}, {"w": torch.ones(4)}, {"w": torch.ones(3, dtype=torch.int64)}):
        before = copy.deepcopy(bad)
        with pytest.raises(UpdateError):
            apply_update(bad, update, in_place=True)
        for name in bad:
            assert torch.equal(bad[name], before[name])
    wider = apply_update({"w": state["w"].double()}, update)
    assert wider["w"].dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": {"w": torch.tensor([1.0, -1.0, 0.0])}}, "negative or non-finite"),
        ({"reference": {"w": torch.tensor([1.0, float("nan"), 0.0])}}, "negative or non-finite"),
        ({"forget": {"w": torch.ones(2)}}, r"is \[2\], not \[3\]"),
        ({"reference": {"v": torch.ones(3)}}, "different parameters"),
        ({"forget": {"x": torch.ones(3)}, "reference": {"x": torch.ones(3)}}, "does not have"),
        ({"forget": {"n": torch.ones(())}, "reference": {"n": torch.zeros(())}}, "only floating-point"),
        ({"threshold": 0.0}, "threshold must be a finite number above 0"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"dampening": -1.0}, "dampening must be"),
    ],
)
def test_bad_fishers_are_refused(change, message: str) -> None:
    state, _ = simple()
    arguments = {
        "forget": {"w": torch.ones(3)},
        "reference": {"w": torch.ones(3)},
        "threshold": 1.0,
        "signature": signature_of(state),
        **change,
    }
    forget, ref = arguments.pop("forget"), arguments.pop("reference")
    with pytest.raises(UpdateError, match=message):
        build_update(forget, ref, **arguments)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda h, t: (h.replace("fl-unlearn-update/1", "fl-unlearn-update/9"), t),
        lambda h, t: (h.replace('"threshold": 2.0', '"threshold": -2.0'), t),
        lambda h, t: (h.replace('"shape": [3]', '"shape": [2]'), t),
        lambda h, t: (h.replace("float32", "int64"), t),
        lambda h, t: ("{}", t),
        lambda h, t: ("no json", t),
        lambda h, t: (h, {**t, "f/w": t["f/w"] * 2 + 1}),
        lambda h, t: (h, {**t, "f/w": t["f/w"] * float("nan")}),
        lambda h, t: (h, {**t, "f/w": t["f/w"].double()}),
        lambda h, t: (h, {**t, "i/w": t["i/w"].flip(0)}),
        lambda h, t: (h, {**t, "i/w": t["i/w"] - 5}),
        lambda h, t: (h, {**t, "i/w": t["i/w"][:1]}),
        lambda h, t: (h, {**t, "i/extra": t["i/w"]}),
        lambda h, t: (h, {"i/w": t["i/w"]}),
    ],
)
def test_malformed_updates_are_refused(spoil) -> None:
    _, update = simple()
    DampeningUpdate.from_tensors(update.header(), update.to_tensors())
    with pytest.raises(UpdateError):
        DampeningUpdate.from_tensors(*spoil(update.header(), update.to_tensors()))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_update(data: bytes) -> None:
    with pytest.raises(UpdateError):
        DampeningUpdate.from_bytes(data)


def test_truncated_update_file_is_refused() -> None:
    data = simple()[1].to_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(UpdateError):
            DampeningUpdate.from_bytes(data[:length])
