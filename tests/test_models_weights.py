"""Initial weights from a local file: what is taken from it, and which files are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_fisher import CLASSES
from cases_models import DIGITS, WORDS, same, small
from safetensors.torch import save_file
from torch import Tensor

from simulations.models import ModelError, build


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "checkpoint"])
def test_weights_from_a_file(tmp_path: Path, kind: str) -> None:
    model = small("lstm", seed=5)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict()} if kind == "checkpoint" else model.state_dict(), path)
    assert same(build("lstm", WORDS, CLASSES, size="small", weights=str(path)), model)


def test_a_head_of_other_classes_stays_random(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = small("resnet18", seed=5)
    save_file({**given.state_dict(), "more": torch.ones(1)}, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, "fl_unlearn"), torch.random.fork_rng():
        torch.manual_seed(0)
        got = build("resnet18", DIGITS, 7, size="small", weights=tmp_path / "w.safetensors").state_dict()
    body = {n: t for n, t in given.state_dict().items() if not n.startswith("fc.")}
    assert len(body) == len(got) - 2
    assert all(torch.equal(got[n], t) for n, t in body.items())
    random = small("resnet18", classes=7)
    assert torch.equal(got["fc.weight"], random.fc.weight)
    assert "the head 'fc' keeps its random weights" in caplog.text
    assert "'more'" in caplog.text


def test_names_of_older_files(tmp_path: Path) -> None:
    model = small("densenet161", seed=5)
    old = {
        n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for n, t in model.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, tmp_path / "w.safetensors")
    assert same(
        build("densenet161", DIGITS, CLASSES, size="small", weights=tmp_path / "w.safetensors"), model
    )


def _lacking(state: dict[str, Tensor], path: Path) -> None:
    save_file({n: t for n, t in state.items() if "lstm" not in n}, path)


def _of_another_size(state: dict[str, Tensor], path: Path) -> None:
    save_file({**state, "embedding.weight": torch.ones(5, 64)}, path)


def _broken(state: dict[str, Tensor], path: Path) -> None:
    save_file({**state, "embedding.weight": torch.full((20, 64), torch.nan)}, path)


def _cut_off(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-9])


BAD_FILES = [
    (_lacking, "w.safetensors", r"does not fit Lstm: 'lstm\.weight_ih_l0' is not in it; .* and 1 more"),
    (_of_another_size, "w.safetensors", r"'embedding\.weight' is \[5, 64\] there, \[20, 64\] in the model"),
    (_broken, "w.safetensors", r"'embedding\.weight' is not finite"),
    (_cut_off, "w.safetensors", "is neither a safetensors file nor a state dict"),
    (lambda _, p: p.write_bytes(b"no weights"), "w.pt", "is neither a safetensors file nor a state dict"),
    (lambda _, p: torch.save(small("mlp"), p), "w.pt", "of which code is refused"),
    (lambda _, p: torch.save([1, 2], p), "w.pt", "holds no state dict.* but list"),
    (lambda _, p: p.mkdir(), "folder", r"holds neither model\.safetensors nor pytorch_model\.bin"),
    (lambda _, p: None, "w.pt", "there is no file .*nothing is downloaded"),
]


@pytest.mark.parametrize(("write", "name", "message"), BAD_FILES)
def test_weights_that_do_not_fit_are_refused(write: Any, name: str, message: str, tmp_path: Path) -> None:
    write(small("lstm").state_dict(), tmp_path / name)
    with pytest.raises(ModelError, match=message):
        build("lstm", WORDS, CLASSES, size="small", weights=tmp_path / name)
