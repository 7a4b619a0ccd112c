"""The trained federation on the bench: its models and pictures, and how a model is scored quickly."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from fl_unlearn.types import ClassScores
from fl_unlearn.verify import score
from simulations.quickstart.fl_unlearn_quickstart import task
from simulations.quickstart.fl_unlearn_quickstart.data import Pictures

from .train import Setting, State, client_shares, original_path, retrained_path

Batch = tuple[torch.Tensor, torch.Tensor]

BATCH = 100
CONVOLUTIONS = "features."
KEPT = 32  # outputs of convolutions in memory: 80 MB each for CIFAR-10's test set


class Bench:
    """One trained federation, to try variants of forgetting on.

    Most variants leave the convolutions of a checkpoint as they are, so what those say of a set of pictures
    is computed once; what comes after them, the `tail`, is cheap.

    Args:
        setting: What was trained.
        out: Where `train.train_all` put the models.
        seed: Which federation.

    Attributes:
        train: All clients' pictures together.
        test: The test pictures.
        clients: Each client's own pictures.
        classes: Number of classes.
        rounds: The global model after each round; the last is the final one.
    """

    def __init__(self, setting: Setting, out: Path, seed: int = 0) -> None:
        data = setting.load()
        self.out, self.seed, self.classes = out, seed, data.num_classes
        self.train, self.test = data.train, data.test
        self.clients = [pick(data.train, rows) for rows in client_shares(setting, seed)]
        self.rounds = [load_file(original_path(out, seed, r + 1)) for r in range(setting.rounds)]
        self._net = task.build_model(data.image_shape, data.num_classes, seed).eval()
        self._tail = nn.Sequential(OrderedDict(fc=self._net.fc, relu=nn.ReLU(), head=self._net.head))
        self._checkpoints = {_digest(state) for state in self.rounds}
        # The pictures are kept with what belongs to them, so that no others get their id.
        self._known: OrderedDict[tuple[str, int], tuple[Pictures, torch.Tensor]] = OrderedDict()

    @property
    def final(self) -> State:
        """The final global model."""
        return self.rounds[-1]

    def retrained(self, label: int) -> State:
        """The final global model of the federation that never saw class ``label``."""
        return load_file(retrained_path(self.out, self.seed, label))

    def model(self, state: State) -> nn.Module:
        """A model with these values, in eval mode: the same object each time."""
        self._net.load_state_dict(state)
        return self._net

    def tail(self, state: State) -> nn.Module:
        """The layers behind the convolutions, with these values: the same object each time."""
        self.model(state)
        return self._tail

    def rows(self, state: State, pictures: Pictures) -> list[Batch]:
        """What the `tail` of a model gets for some pictures, and their labels, in batches."""
        return in_batches(Pictures(self._hidden(state, pictures), pictures.labels))

    def scores(self, state: State, pictures: Pictures) -> ClassScores:
        """Accuracy and loss of a model per class."""
        rows = self.rows(state, pictures)
        return score(self.tail(state), rows)

    def _hidden(self, state: State, pictures: Pictures) -> torch.Tensor:
        digest = _digest(state)
        key = (digest, id(pictures))
        if key not in self._known:
            convolutions = self.model(state).get_submodule("features")
            with torch.no_grad():
                out = torch.cat([convolutions(_channels_last(x)).flatten(1) for x, _ in in_batches(pictures)])
            if digest not in self._checkpoints:
                return out
            self._known[key] = (pictures, out)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key][1]


def pick(pictures: Pictures, rows: torch.Tensor) -> Pictures:
    """Some of the pictures, by index or mask."""
    return Pictures(pictures.images[rows], pictures.labels[rows])


def in_batches(pictures: Pictures) -> list[Batch]:
    """The pictures in batches, which share their memory."""
    images, labels = torch.split(pictures.images, BATCH), torch.split(pictures.labels, BATCH)
    return list(zip(images, labels, strict=True))


def first_of_each_class(pictures: Pictures, count: int, labels: range | list[int]) -> Pictures:
    """The first ``count`` pictures (or all there are) of each of the classes."""
    rows = [(pictures.labels == c).nonzero().squeeze(1)[:count] for c in labels]
    return pick(pictures, torch.cat(rows))


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _digest(state: State) -> str:
    """Name of a model's convolutions."""
    sha = hashlib.sha256()
    for name in sorted(state):
        if name.startswith(CONVOLUTIONS):
            sha.update(state[name].contiguous().numpy().tobytes())
    return sha.hexdigest()
