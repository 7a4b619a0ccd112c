"""The benchmark of Fisher diagonals runs and judges as it says; its timings are not looked at."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import pytest
import torch

from simulations.benchmarks import fisher, fisher_cases, fisher_methods, fisher_part

SMALL = fisher_cases.Case("small", lambda: fisher_cases._mlp(7, 6, 10), (7,))


def test_methods_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fisher_cases.CASES, "small", SMALL)
    result = fisher_part.times("small", list(fisher_methods.METHODS), batch=9, repeats=2, device="cpu")
    for library in ("backpack", "opacus"):
        if importlib.util.find_spec(library) is None:
            assert "ModuleNotFoundError" in result.pop(library)["reason"]
    for name, of in result.items():
        assert len(of["seconds"]) == 2, of
        assert ("difference" in of) is fisher_methods.METHODS[name].exact
        assert of.get("difference", 0.0) < 1e-5


def test_a_difference_is_seen() -> None:
    ours = {"a": torch.tensor([4.0, 0.0]), "b": torch.tensor([0.0])}
    theirs = {"a": torch.tensor([4.0, 0.2]), "b": torch.tensor([0.01])}
    assert fisher_part._difference(theirs, ours) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["resnet18", "vit", "mlp", "lstm"])
def test_cases(name: str) -> None:
    model, x, y = fisher_cases.CASES[name].make(2, "cpu")
    again = fisher_cases.CASES[name].make(2, "cpu")
    assert torch.equal(x, again[1])
    assert torch.equal(y, again[2])
    grads = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(bool(g.any()) for g in grads)
    with torch.no_grad():
        assert torch.equal(model(x), again[0](x))


def test_operations_of_the_lstm_are_counted() -> None:
    by_hand = 3 * 2 * 64 * ((128 + 256) * 1024) + 3 * 2 * 256 * 10
    counts = fisher_part.count("lstm", 1)
    # Neither the embedding's gradient nor that by the first state is a product.
    assert 0.9 * by_hand < counts["forward_backward_flops"] <= by_hand
    assert counts["gradient_elements"] == counts["parameters"] == 5000 * 128 + 1024 * (384 + 2) + 2570


def test_judging() -> None:
    times = {
        "forward": {"seconds": [1.0, 1.0, 10.0]},
        "forward_backward": {"seconds": [3.0, 3.0, 30.0]},
        "ours_head": {"seconds": [1.0, 1.1, 10.0]},
        "ours_all": {"seconds": [6.0, 9.0, 60.0]},
        "torch_func": {"seconds": [60.0, 90.0, 600.0]},
        "backpack": {"seconds": [24.0, 36.0, 240.0]},
    }
    assert fisher.judge("mlp", times) == {
        "head_over_forward": {"value": 1.0, "aim": 1.05, "met": True},
        "all_over_forward_backward": {"value": 2.0, "aim": 3.0, "met": True},
        "speedup_over_better_rival": {"value": 4.0, "aim": 6.0, "met": False},
    }
    times["backpack"] = {"reason": "no"}
    assert fisher.judge("mlp", times)["speedup_over_better_rival"]["value"] == 10.0
    times["ours_all"] = {"reason": "no"}
    assert list(fisher.judge("mlp", times)) == ["head_over_forward"]


def test_the_program(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(fisher, "cores", lambda: 1)
    parts = []

    def part(what: str, case: str, threads: int, device: str, **options: object) -> dict:
        parts.append((what, options.get("methods")))
        if what == "times":
            return {
                "forward": {"seconds": [0.1], "median": 0.1},
                "forward_backward": {"seconds": [0.2], "median": 0.2},
                "ours_all": {"seconds": [0.3], "median": 0.3},
                "torch_func": {"seconds": [3.0], "median": 3.0, "difference": 2e-7},
                "opacus": {"reason": "no such layer"},
            }
        return fisher_part.count(case, 4) if what == "count" else {"peak_bytes": 5_000_000}

    monkeypatch.setattr(fisher, "_part", part)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "out" / "fisher.json"
    monkeypatch.setattr(sys, "argv", ["fisher", "--cases", "tiny", "--json", str(file)])
    fisher.main()
    printed = capsys.readouterr().out
    assert "Opacus, squares of grad_sample: no such layer" in printed
    assert "speedup over better rival: 10.00, aim 6.0: met" in printed
    assert "2e-07" in printed
    assert parts.count(("memory", "torch_func")) == 1
    assert ("memory", "opacus") not in parts
    (place,) = json.loads(file.read_text())["cases"]["tiny"]["places"]
    assert place["peak_bytes"]["ours_all"] == 5_000_000


def test_unknown_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["fisher", "--cases", "mlp,cnn"])
    with pytest.raises(SystemExit):
        fisher.main()
    assert "no case ['cnn']" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_part_of_its_own() -> None:
    peak = fisher._part("memory", "tiny", 1, "cpu", batch=8, methods="forward_backward")["peak_bytes"]
    assert 0 <= peak < 10**9


def test_a_part_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match=r"fisher_part count tiny .* failed with status 1"):
        fisher._part("count", "tiny", 1, "cpu")
