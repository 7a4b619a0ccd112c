"""Trains what the table compares: one federation, and for each class the same federation without it.

Plain FedAvg in one process: no engine, no messages, the arithmetic of the quickstart. Every model is one
file; what is there is not trained again, and an interrupted training goes on from its last round.

    python -m simulations.figures.deeper.train --data ~/cifar10 --out outputs/deeper
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

from simulations.quickstart.fl_unlearn_quickstart import task
from simulations.quickstart.fl_unlearn_quickstart.data import DataBundle, load

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """One federation: what it trains on, and how.

    Attributes:
        dataset: A data set of the quickstart; "parquet" is a folder in the Hugging Face hub's layout.
        data: The data set's folder; may be empty for "digits".
        pictures: Training pictures in all, in equal share of every class; 0 takes every one.
        clients: How many clients share them, independently and identically distributed.
        rounds: Rounds of FedAvg, each with one local epoch.
        batch: Pictures a step.
        lr: Learning rate of SGD with momentum 0.9 and weight decay 5e-4.
    """

    dataset: str = "parquet"
    data: str = ""
    pictures: int = 20_000
    clients: int = 5
    rounds: int = 15
    batch: int = 32
    lr: float = 0.05

    def load(self) -> DataBundle:
        """The data: the same pictures for every seed, so that one test set serves all."""
        return load(self.dataset, self.data, seed=0, max_train=self.pictures)


def original_path(out: Path, seed: int, number: int) -> Path:
    """File of the global model after round ``number`` of the federation that saw every class."""
    return out / "models" / f"seed-{seed}-original-round-{number:02d}.safetensors"


def retrained_path(out: Path, seed: int, label: int) -> Path:
    """File of the final global model of the federation that never saw class ``label``."""
    return out / "models" / f"seed-{seed}-without-{label}.safetensors"


def train_original(setting: Setting, seed: int, out: Path) -> None:
    """Train on every class; keeps the global model of each round, and goes on after the last one kept."""
    done = 0
    while original_path(out, seed, done + 1).is_file():
        done += 1
    if done >= setting.rounds:
        return
    model = _initial(setting, seed)
    if done:
        model.load_state_dict(load_file(original_path(out, seed, done)))
    for number in range(done + 1, setting.rounds + 1):
        started = time.perf_counter()
        fedavg_round(model, setting, seed, number)
        _save(model.state_dict(), original_path(out, seed, number))
        _say(f"original, seed {seed}: round {number}/{setting.rounds}, {_seconds(started)}")


def train_without(setting: Setting, seed: int, label: int, out: Path) -> None:
    """Train from the same start without class ``label``; keeps the final global model."""
    path = retrained_path(out, seed, label)
    if path.is_file():
        return
    model, started = _initial(setting, seed), time.perf_counter()
    for number in range(1, setting.rounds + 1):
        fedavg_round(model, setting, seed, number, exclude={label})
    _save(model.state_dict(), path)
    _say(f"without class {label}, seed {seed}: {setting.rounds} rounds, {_seconds(started)}")


def fedavg_round(
    model: torch.nn.Module, setting: Setting, seed: int, number: int, exclude: Collection[int] = ()
) -> None:
    """One round, in place: every client trains one epoch from ``model``; the mean by number of samples."""
    start = {n: t.clone() for n, t in model.state_dict().items()}
    mean = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in start.items()}
    total = 0
    for client, loader in enumerate(client_loaders(setting, seed)):
        model.load_state_dict(start)
        _, examples = task.train(
            model,
            loader,
            epochs=1,
            lr=setting.lr,
            momentum=0.9,
            weight_decay=5e-4,
            device="cpu",
            seed=task.round_seed({"seed": seed}, number, client),
            exclude=exclude,
        )
        for n, t in model.state_dict().items():
            mean[n] += examples * t.double()
        total += examples
    model.load_state_dict({n: (t / total).to(start[n].dtype) for n, t in mean.items()})


def client_loaders(setting: Setting, seed: int) -> list[task.Loader]:
    """One shuffling loader per client."""
    pictures = setting.load().train
    return [
        DataLoader(
            TensorDataset(pictures.images[own], pictures.labels[own]),
            setting.batch,
            shuffle=True,
            generator=torch.Generator(),
        )
        for own in client_shares(setting, seed)
    ]


def client_shares(setting: Setting, seed: int) -> tuple[torch.Tensor, ...]:
    """Indices of each client's training pictures: equal random shares."""
    order = np.random.default_rng(seed).permutation(len(setting.load().train.labels))
    return torch.tensor_split(torch.from_numpy(order), setting.clients)


def train_all(setting: Setting, out: Path, labels: Iterable[int], seeds: Iterable[int] = (0,)) -> None:
    """Train what is missing of the originals and of the retrained models.

    Raises:
        ValueError: If ``out`` holds models of another setting.
    """
    (out / "models").mkdir(parents=True, exist_ok=True)
    path = out / "models" / "setting.json"
    mine = {k: v for k, v in asdict(setting).items() if k != "data"}  # the folder may move
    if not path.is_file():
        part = path.with_suffix(".part")
        part.write_text(json.dumps(mine))
        part.rename(path)  # whole or not there: several processes may measure in one folder
    elif json.loads(path.read_text()) != mine:
        raise ValueError(f"{out} holds models of another setting ({path.read_text()}); name another --out")
    for seed in seeds:
        train_original(setting, seed, out)
        for label in labels:
            train_without(setting, seed, label, out)


def _initial(setting: Setting, seed: int) -> task.Net:
    data = setting.load()
    return task.build_model(data.image_shape, data.num_classes, seed)


def _save(state: State, path: Path) -> None:
    part = path.with_suffix(".part")
    save_file({n: t.contiguous() for n, t in state.items()}, part)
    part.rename(path)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _seconds(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained."""
    default = Setting()
    parser.add_argument("--data", default="", help="folder of the data set (CIFAR-10 as parquet files)")
    parser.add_argument("--dataset", default=default.dataset, help="parquet, cifar10 (torchvision), digits")
    parser.add_argument("--out", type=Path, default=Path("outputs/deeper"), help="where everything goes")
    parser.add_argument("--classes", type=int, nargs="*", default=list(range(10)), help="classes to forget")
    for name in ("pictures", "clients", "rounds", "batch"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--lr", type=float, default=default.lr)


def setting_of(options: argparse.Namespace) -> Setting:
    """The setting that the options of `add_arguments` name."""
    return Setting(**{name: getattr(options, name) for name in asdict(Setting())})


def main() -> None:
    """Train everything that is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="one federation for each")
    options = parser.parse_args()
    train_all(setting_of(options), options.out, options.classes, options.seeds)


if __name__ == "__main__":
    main()
