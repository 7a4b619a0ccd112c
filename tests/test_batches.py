"""One batch of a loader, and samples of a loader."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fl_unlearn.batches import sample, seeded, to_device, unpack
from fl_unlearn.types import FisherError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y.to(torch.uint8)],
        {"img": X, "label": Y, "extra": Y},
        {"pixel_values": X, "labels": Y.int()},
        {"image": X, "fine_label": Y, "coarse_label": Y * 0},
        {"signal": X, "target": Y},
        {"input_ids": X, "attention_mask": torch.ones(4, 3), "labels": Y},
    ],
    ids=lambda b: "-".join(b) if isinstance(b, dict) else type(b).__name__,
)
def test_unpack(batch: object) -> None:
    x, y = unpack(batch)
    assert x is X
    torch.testing.assert_close(y, Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y, Y), "got 3 elements"),
        (X, "got Tensor"),
        ({"img": X, "class": Y}, "its keys are 'img', 'class'"),
        ({"a": X, "b": X, "label": Y}, "2 fit; its keys are 'a', 'b', 'label'"),
        ({"label": Y}, "0 fit"),
        ({"input_ids": X, "attention_mask": torch.zeros(4, 3), "labels": Y}, "attention_mask"),
        ((X, [0, 1]), "must be a tensor, got list"),
        ((X, Y.float()), "integer dtype, got torch.float32"),
        ((X, Y > 0), "integer dtype, got torch.bool"),
        ((X, Y[:, None]), r"shape \(N,\), got \[4, 1\]"),
        ((X, Y - 1), "0 or more, got -1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_unpack_refuses(batch: object, message: str) -> None:
    with pytest.raises(FisherError, match=message):
        unpack(batch)


def test_to_device_looks_into_containers() -> None:
    moved = to_device({"a": [X, (Y, "text")], "b": 3}, "meta")
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == "meta"
    assert (moved["a"][1][1], moved["b"]) == ("text", 3)


@pytest.mark.parametrize("most", [0, 1, 4, 100])
@pytest.mark.parametrize("classes", [(1,), (0, 2), (9,), ()])
def test_sample_takes_the_first_of_either_group(most: int, classes: tuple[int, ...]) -> None:
    y = torch.tensor([0, 1, 1, 2, 1, 0, 2, 1, 1, 0, 2, 2, 1])
    x = torch.arange(len(y)) * 10
    batches = [{"img": x[i : i + 5], "label": y[i : i + 5]} for i in range(0, len(y), 5)]
    expected, left = [], {True: most or 99, False: most or 99}
    for value, label in zip(x.tolist(), y.tolist(), strict=True):
        if left[label in classes] > 0:
            left[label in classes] -= 1
            expected.append((value, label))
    taken = sample(iter(batches), classes, most)
    got = [(int(v), int(c)) for xs, ys in taken for v, c in zip(xs, ys, strict=True)]
    assert got == expected


def test_sample_stops_reading_when_it_has_enough() -> None:
    def endless() -> object:
        while True:
            yield torch.zeros(3, 2), torch.tensor([0, 1, 1])

    assert sum(len(y) for _, y in sample(endless(), (0,), 5)) == 10


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_a_seeded_block_draws_the_same_and_leaves_the_random_state(device: str) -> None:
    drawn = []
    expected = torch.manual_seed(5) and [torch.rand(3), torch.rand(3, device=device)]
    torch.manual_seed(5)
    for seed in (1, 1, 2):
        with seeded(seed, device):
            drawn.append(torch.rand(4, device=device).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    after = [torch.rand(3), torch.rand(3, device=device)]
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_a_gpu_has_a_generator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU at hand: which states are kept, and what is seeded where."""
    calls: list[object] = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: calls.append(devices) or nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda d: calls.append(d) or nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", calls.append)
    state = torch.get_rng_state()
    with seeded(7, "cuda:1"):
        assert calls == [[torch.device("cuda:1")], torch.device("cuda:1"), 7]
    torch.set_rng_state(state)
