"""Initial weights from a local file."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fl_unlearn.fisher import find_head
from simulations.models.errors import ModelError

log = logging.getLogger("fl_unlearn.simulations")

# What older files call a value: DenseNet-161 of torchvision, BERT of its authors.
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")


def load_weights(model: nn.Module, path: Path) -> None:
    """Take a model's values from a file; those of its head only where the number of classes is the same.

    Args:
        model: Changed in place.
        path: A safetensors file, or one that ``torch.save`` wrote of a state dict; or a folder with such a
            file as transformers writes it. Values of other names are left aside.

    Raises:
        ModelError: If the file cannot be read, or does not hold every value of the model's body, of the right
            shape and finite. The model is then as it was.
    """
    found = read_weights(path)
    for pattern, name in _OLD_NAMES:
        found = {pattern.sub(name, n): t for n, t in found.items()}
    wanted = model.state_dict()
    head = find_head(model)[0]
    own = [n for n in wanted if n.rpartition(".")[0] == head]
    if any(n not in found or found[n].shape[:1] != wanted[n].shape[:1] for n in own):
        log.info("%s: the head %r keeps its random weights, for it has other classes", path, head)
        wanted = {n: t for n, t in wanted.items() if n not in own}
    problems = [p for n, t in wanted.items() if (p := _problem(n, t, found.get(n)))]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}. Weights fit "
            "a model of the same size for inputs of the same shape"
        )
    if other := [n for n in found if n not in wanted and n not in own]:
        log.info("%s: %d values were left aside, such as %r", path, len(other), other[0])
    model.load_state_dict({n: found[n] for n in wanted}, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU.

    Raises:
        ModelError: If there is none, or it holds something else.
    """
    if path.is_dir():
        files = [path / f for f in _IN_FOLDER if (path / f).is_file()]
        if not files:
            raise ModelError(f"the folder {path} holds neither {' nor '.join(_IN_FOLDER)}")
        path = files[0]
    if not path.is_file():
        raise ModelError(f"there is no file {path} to take weights from; nothing is downloaded")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # what torch.load raises for other files is not documented
        raise ModelError(
            f"{path} is neither a safetensors file nor a state dict of torch.save, of which code is refused: "
            f"{type(e).__name__}: {e!s:.300}"
        ) from e
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ModelError(
            f"{path} holds no state dict, which maps names to tensors, but {type(found).__name__}"
        )
    return found


def _problem(name: str, own: Tensor, found: Tensor | None) -> str | None:
    if found is None:
        return f"{name!r} is not in it"
    if found.shape != own.shape:
        return f"{name!r} is {list(found.shape)} there, {list(own.shape)} in the model"
    if not bool(found.isfinite().all()):
        return f"{name!r} is not finite"
    return None
