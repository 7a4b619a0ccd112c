"""Decides which client owns which pictures: label-skewed shares, and few holders of a class to forget."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import numpy as np
import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

SMALLEST_SHARE = 10
"""The Dirichlet draw is repeated until every client owns this many samples (fewer if data is scarce)."""


def assign(
    labels: np.ndarray | torch.Tensor,
    num_clients: int,
    *,
    alpha: float,
    seed: int,
    forget_classes: Collection[int] = (),
    holders: int = 0,
) -> list[np.ndarray]:
    """Give every sample to exactly one client.

    The shares of each class follow a Dirichlet distribution (as in Yurochkin et al. 2019, arXiv
    1905.12022). With ``holders`` above 0, each class of ``forget_classes`` is then taken from all clients and
    split evenly among that many: the first such class among clients 0 .. holders-1, the next among the
    following ones, and so on, from client 0 again when none are left.

    Args:
        labels: Whole numbers, shape (N,).
        num_clients: How many clients share the samples.
        alpha: Small values give each client few classes (0.1), large ones all of them alike (100).
        seed: Same seed, same shares.
        forget_classes: The classes that only some clients are to own.
        holders: How many clients own each of ``forget_classes``; 0 leaves the Dirichlet shares alone.

    Returns:
        One ascending int64 index array per client, none of them empty.

    Raises:
        ValueError: For arguments out of range, for a class that does not occur, or if a client would
            be left without data.
    """
    labels = np.asarray(labels)
    if num_clients < 1:
        raise ValueError(f"at least one client is needed, got {num_clients}")
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be a finite number above 0, got {alpha}")
    if not 0 <= holders <= num_clients:
        raise ValueError(f"holders must lie between 0 and the {num_clients} clients, got {holders}")
    owned = _dirichlet(labels, num_clients, alpha, seed)
    if holders == 0 or not forget_classes:
        return owned
    classes = sorted(set(forget_classes))
    owned = [share[~np.isin(labels[share], classes)] for share in owned]
    rng = np.random.default_rng(seed)
    for k, label in enumerate(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < holders:
            raise ValueError(
                f"class {label} of forget-classes has {len(members)} samples, too few for {holders} holders"
            )
        for i, part in enumerate(np.array_split(members, holders)):
            client = (k * holders + i) % num_clients
            owned[client] = np.concatenate([owned[client], part])
    empty = [client for client, share in enumerate(owned) if not len(share)]
    if empty:
        raise ValueError(
            f"clients {empty} own nothing but classes to forget, which others hold now; "
            "raise alpha or holders, or name fewer forget-classes"
        )
    return [np.sort(share) for share in owned]


def _dirichlet(labels: np.ndarray, num_clients: int, alpha: float, seed: int) -> list[np.ndarray]:
    smallest = min(SMALLEST_SHARE, max(1, len(labels) // (2 * num_clients)))
    partitioner = DirichletPartitioner(
        num_clients,
        partition_by="label",
        alpha=float(alpha),
        min_partition_size=smallest,
        seed=seed,
    )
    partitioner.dataset = Dataset.from_dict({"index": np.arange(len(labels)), "label": labels})
    try:
        # It warns at each new draw; what matters is said below if the last one fails too.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            shares = [np.sort(partitioner.load_partition(c)["index"][:]) for c in range(num_clients)]
    except ValueError as error:
        raise ValueError(
            f"{len(labels)} samples could not be shared among {num_clients} clients with alpha {alpha} and "
            f"at least {smallest} samples each; raise alpha or take fewer clients"
        ) from error
    if not np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(labels))):
        raise ValueError(f"alpha {alpha} is too small to compute with; raise it")
    return shares


def split_local(
    indices: np.ndarray, labels: np.ndarray | torch.Tensor, seed: int, held_out: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Split one client's samples into those it trains on and those it holds out, class by class.

    Every class keeps at least one sample to train on; a class with one or two samples holds none out.

    Args:
        indices: The client's samples, as `assign` returns them.
        labels: Labels of all clients' samples, shape (N,).
        seed: Same seed, same split.
        held_out: Share to hold out, 0 <= held_out < 1.

    Returns:
        Ascending indices to train on, and those held out.

    Raises:
        ValueError: If ``held_out`` is out of range.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be at least 0 and below 1, got {held_out}")
    rng = np.random.default_rng(seed)
    own = np.asarray(labels)[indices]
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for label in np.unique(own):
        members = rng.permutation(indices[own == label])
        cut = min(round(held_out * len(members)), len(members) - 1)
        test.append(members[:cut])
        train.append(members[cut:])
    return _joined(train), _joined(test)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
