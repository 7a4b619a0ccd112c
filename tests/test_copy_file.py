"""One copy's file: what an update changes in it beside plain PyTorch, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
from hashlib import sha256
from typing import Any

import copies_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fl_unlearn.copy_file import CopyError, ForeignCopyError, change_file, check_file, fit
from fl_unlearn.dampen import apply_update
from fl_unlearn.types import signature_of

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(
    format_=st.sampled_from(sorted(cases.FORMATS)),
    dtype=st.sampled_from(DTYPES),
    held=st.sets(st.sampled_from([*cases.SHAPES, "steps"]), min_size=1),
    erases=st.booleans(),
    numbered=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_part_gets_what_it_would_get_in_the_whole(
    format_: str, dtype: torch.dtype, held: set[str], erases: bool, numbered: bool, seed: int
) -> None:
    """Reference: the update of the whole model, in memory; then only the layers held are looked at."""
    whole, update = cases.model(seed, dtype), cases.update(seed, erases)
    copy = {n: t.clone() for n, t in whole.items() if n in held}
    data = cases.FORMATS[format_](copy)
    done = change_file(data, cases.by_number(update) if numbered else update, cases.SIGNATURE)
    expected = {n: t for n, t in apply_update(whole, update).items() if n in held}
    assert set(done.absent) == set(update.changes) - held
    assert done.before == sha256(data).hexdigest()
    if held.isdisjoint(update.changes):
        assert (done.data, done.after) == (None, done.before)
        return
    assert done.data is not None
    assert done.after == sha256(done.data).hexdigest()
    assert_close(cases.read(done.data), expected, rtol=0, atol=0)


def test_all_else_in_a_safetensors_file_stays_as_it_was() -> None:
    before = cases.as_safetensors(cases.model())
    after = change_file(before, cases.update(), cases.SIGNATURE).data
    assert after is not None
    assert len(after) == len(before)
    size = 8 + int.from_bytes(before[:8], "little")
    assert after[:size] == before[:size], "names, order and whatever others noted in it"
    offsets = json.loads(before[8:size])
    for name, tensor in apply_update(cases.model(), cases.update()).items():
        begin, end = offsets[name]["data_offsets"]
        assert after[size + begin : size + end] == tensor.numpy().tobytes()


def test_tensors_that_begin_anywhere() -> None:
    """Other programs need not align them."""
    data = cases.as_safetensors(cases.model())
    size = int.from_bytes(data[:8], "little")
    odd = (size + 3).to_bytes(8, "little") + data[8 : 8 + size] + b"   " + data[8 + size :]
    done = change_file(odd, cases.update(), cases.SIGNATURE).data
    assert done is not None
    assert_close(cases.read(done), apply_update(cases.model(), cases.update()), rtol=0, atol=0)


def test_tied_tensors_in_a_torch_file_are_changed_once_and_stay_tied() -> None:
    state = cases.model()
    state["tied"] = state["head.weight"]
    signature = signature_of(state)
    update = cases.update()
    both = {**update.entries, "tied": update.entries["head.weight"]}
    twice = type(update)(both, update.threshold)
    done = change_file(cases.as_torch(state), twice, signature).data
    assert done is not None
    got = cases.read(done)
    assert_close(got["head.weight"], apply_update(cases.model(), update)["head.weight"], rtol=0, atol=0)
    assert got["tied"].data_ptr() == got["head.weight"].data_ptr()


def test_parameters_and_the_order_of_a_torch_file() -> None:
    net = torch.nn.Linear(6, 5)
    state = {f"head.{n}": p for n, p in net.named_parameters()}
    done = change_file(cases.as_torch(state), cases.update(), cases.SIGNATURE).data
    assert done is not None
    got = torch.load(io.BytesIO(done), weights_only=True)
    assert [*got] == ["head.weight", "head.bias"]
    assert all(isinstance(p, torch.nn.Parameter) for p in got.values())


def test_arrays_by_their_number() -> None:
    state = {str(i): t for i, t in enumerate(cases.model().values())}
    done = change_file(cases.as_torch(state), cases.update(), cases.SIGNATURE).data
    assert done is not None
    expected = apply_update(cases.model(), cases.update())
    assert_close([*cases.read(done).values()], [*expected.values()], rtol=0, atol=0)


@pytest.mark.parametrize("format_", cases.FORMATS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {f"module.{n}": t for n, t in s.items()}, "none of its tensors"),
        (lambda s: {"0": s["head.weight"]}, "none of its tensors"),
        (lambda s: {**s, "head.weight": torch.ones(4, 6)}, r"'head.weight' is \[4, 6\] in it, \[5, 6\]"),
        (lambda s: {**s, "conv.weight": torch.ones(6, 4)}, "'conv.weight' is"),
    ],
)
def test_foreign_models(format_: str, change: Any, match: str) -> None:
    data = cases.FORMATS[format_](change(cases.model()))
    with pytest.raises(ForeignCopyError, match=match):
        change_file(data, cases.update(), cases.SIGNATURE)


def test_whole_numbers_are_refused() -> None:
    copy = {**signature_of(cases.model()), "head.bias": signature_of({"b": torch.ones(5).int()})["b"]}
    with pytest.raises(CopyError, match=r"'head\.bias' is int32 in it"):
        fit(cases.update(), copy, cases.SIGNATURE)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def pickled(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "neither a safetensors file nor"),
        (b"PK\x03\x04 and nothing", "cannot read it"),
        (pickle.dumps({"a": 1}), "neither a safetensors file nor"),
        (pickled(Evil()), r"weights_only=True cannot read it \(UnpicklingError\)"),
        (pickled(torch.ones(3)), "holds a Tensor, not a state dict"),
        (pickled({}), "holds a dict, not a state dict"),
        (pickled({"model": cases.model(), "epoch": 3}), "its 'model' is no plain tensor but a dict"),
        (pickled({3: torch.ones(2)}), "its '3' is no plain tensor"),
        (pickled({"head.weight": torch.eye(3).to_sparse()}), "its 'head.weight' is no plain tensor"),
        (cases.as_torch(cases.model())[:-30], "cannot read it"),
        (cases.as_safetensors(cases.model())[:-1], "or it is truncated"),
        (cases.as_safetensors(cases.model()).replace(b'"I64"', b'" 64"'), "or damaged"),
    ],
)
def test_files_that_cannot_be_read(data: bytes, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    for act in (lambda: check_file(data), lambda: change_file(data, cases.update(), cases.SIGNATURE)):
        with pytest.raises(CopyError, match=match):
            act()
    assert "executed" not in capsys.readouterr().out


@given(data=st.data(), format_=st.sampled_from(sorted(cases.FORMATS)))
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_refused_or_read_but_never_crash(data: Any, format_: str) -> None:
    content = np.frombuffer(cases.FORMATS[format_](cases.model()), np.uint8).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        done = change_file(content.tobytes(), cases.update(), cases.SIGNATURE)
    except CopyError:
        return
    assert done.data is None or set(cases.read(done.data)) == set(cases.read(content.tobytes()))
