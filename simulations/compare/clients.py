"""The clients of a comparison, with their data: who owns what, what was planted, what is to be forgotten."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import TensorDataset

from fl_unlearn.fisher import find_head
from simulations.compare.setting import Setting, SettingError
from simulations.quickstart.fl_unlearn_quickstart import task
from simulations.quickstart.fl_unlearn_quickstart.data import DataBundle, load
from simulations.quickstart.fl_unlearn_quickstart.partition import assign
from strategies.client import Client
from strategies.training import state_of


def load_data(setting: Setting) -> DataBundle:
    """The data set: the same pictures for every seed, so that one test set serves all."""
    return load(setting.dataset, setting.data_root, seed=0, max_train=setting.pictures)


def build_model(setting: Setting, seed: int | None = None) -> task.Net:
    """The model, with weights of this seed; None: of torch's random state."""
    data = load_data(setting)
    if seed is None:
        return task.Net(data.image_shape, data.num_classes)
    return task.build_model(data.image_shape, data.num_classes, seed)


def head_of(setting: Setting) -> str:
    """Name of the model's head."""
    return find_head(build_model(setting, 0))[0]


def initial_state(setting: Setting, seed: int) -> dict[str, torch.Tensor]:
    """The model that training begins with."""
    return state_of(build_model(setting, seed))


@lru_cache(maxsize=4)
def _shares(setting: Setting, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training pictures and test pictures of each client; the test pictures are dealt at random."""
    data = load_data(setting)
    train = assign(data.train.labels, setting.clients, alpha=setting.alpha, seed=seed)
    order = np.random.default_rng(seed).permutation(len(data.test.labels))
    return train, [np.sort(part) for part in np.array_split(order, setting.clients)]


def make_clients(setting: Setting, seed: int, *, device: str = "cpu") -> list[Client]:
    """All clients, knowing the setting's request.

    Raises:
        SettingError: If a client has fewer samples than are to be forgotten of it.
        ValueError: If the data cannot be shared as the setting says.
    """
    return [make_client(setting, seed, index, device=device) for index in range(setting.clients)]


def make_client(setting: Setting, seed: int, index: int, *, device: str = "cpu") -> Client:
    """One client; see `make_clients`."""
    data, (train, test) = load_data(setting), _shares(setting, seed)
    samples = {
        client: _drawn(client, wanted, len(train[int(client)]), seed)
        for client, wanted in setting.samples_wanted().items()
    }
    own = torch.from_numpy(train[index])
    x, y = data.train.images[own], data.train.labels[own]
    name, target = str(index), setting.backdoor_label
    if name == setting.backdoor_client:
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
        rows = rows[: round(setting.backdoor_share * len(y))]
        x[rows], y[rows] = with_trigger(x[rows], data), target
    held = torch.from_numpy(test[index])
    held_x, held_y = data.test.images[held], data.test.labels[held]
    triggered = None
    if setting.backdoor_client:
        other = held_y != target
        triggered = TensorDataset(with_trigger(held_x[other], data), torch.full_like(held_y[other], target))
    return Client(
        name,
        index,
        lambda: build_model(setting),
        TensorDataset(x, y),
        TensorDataset(held_x, held_y),
        setting.request(samples),
        triggered,
        device,
    )


def with_trigger(images: torch.Tensor, data: DataBundle) -> torch.Tensor:
    """Copies of pictures with a bright square in the corner, of a tenth of their side (at least 2 pixels)."""
    side = max(2, data.image_shape[1] // 10)
    out = images.clone()
    out[:, :, -side:, -side:] = data.train.images.amax(dim=(0, 2, 3))[:, None, None]
    return out


def _drawn(client: str, wanted: int, owned: int, seed: int) -> tuple[int, ...]:
    if wanted >= owned:
        raise SettingError(f"client {client} has {owned} samples, too few to forget {wanted} and keep some")
    return tuple(np.sort(np.random.default_rng(seed).permutation(owned)[:wanted]).tolist())
