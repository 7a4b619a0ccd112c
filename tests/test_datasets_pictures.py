from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import TensorDataset

pytest.importorskip("sklearn")
pytest.importorskip("datasets")
pytest.importorskip("pyarrow")
torchvision = pytest.importorskip("torchvision")

from dataset_files import (  # noqa: E402
    corner_found,
    noise,
    with_corner,
    write_cifar,
    write_mnist,
    write_parquet_pictures,
)

from simulations.datasets import DatasetError, load  # noqa: E402
from simulations.datasets.__main__ import main  # noqa: E402


def images(part):
    return part.samples.tensors[0]


def write(name, root, monkeypatch):
    """Two classes: four pictures to train on, two to test on; the first of each has the corner."""
    labels = [0, 1, 0, 1], [0, 1]
    if name == "parquet":
        for part, own in zip(("train", "test"), labels, strict=True):
            pictures = [with_corner(32), *(noise(32, i) for i in range(1, len(own)))]
            write_parquet_pictures(root / "data" / f"{part}-00000.parquet", pictures, own)
    elif name.startswith("cifar"):
        write_cifar(monkeypatch, root, getattr(torchvision.datasets, name.upper()), *labels)
    else:
        write_mnist(root, {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name], *labels)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "parquet"])
def test_pictures_come_out_upright_and_normalised(name, tmp_path, monkeypatch):
    write(name, tmp_path, monkeypatch)
    bundle = load(name, str(tmp_path))
    shape = (1, 28, 28) if "mnist" in name else (3, 32, 32)
    assert (bundle.inputs.shape, bundle.inputs.vocabulary, bundle.num_classes) == (shape, 0, 2)
    assert [bundle.train.labels.tolist(), bundle.test.labels.tolist()] == [[0, 1, 0, 1], [0, 1]]
    assert [corner_found(image) for image in images(bundle.train)] == [True, False, False, False]
    assert [corner_found(image) for image in images(bundle.test)] == [True, False]
    assert_close(images(bundle.train).mean(dim=(0, 2, 3)), torch.zeros(shape[0]), atol=1e-5, rtol=0)
    assert_close(images(bundle.train).std(dim=(0, 2, 3)), torch.ones(shape[0]), atol=1e-5, rtol=0)


def test_digits_are_split_into_two_disjoint_parts_by_the_seed():
    first, again, other = (
        load("digits", seed=seed, tokens=tokens) for seed, tokens in ((1, 8), (1, 9), (2, 8))
    )
    assert (len(first.train.labels), len(first.test.labels), first.inputs.shape) == (1437, 360, (1, 8, 8))
    assert torch.equal(images(first.train), images(again.train))
    assert not torch.equal(first.train.labels, other.train.labels)
    assert load("digits", seed=1, tokens=8) is first
    from sklearn.datasets import load_digits

    together = torch.cat([images(first.train), images(first.test)]).flatten(1)
    scale = together.max() - together.min()
    rows = ((together - together.min()) / scale * 16).round().int().tolist()
    assert sorted(rows) == sorted(load_digits().data.astype(int).tolist())


def test_subsets_keep_the_share_of_every_class_and_follow_the_seed():
    some = load("digits", max_train=100, max_test=50, seed=4)
    assert torch.bincount(some.train.labels).tolist() == [10] * 10
    assert torch.bincount(some.test.labels).tolist() == [5] * 10
    assert torch.equal(
        images(load("digits", max_train=100, max_test=50, seed=4, tokens=7).test), images(some.test)
    )
    everything = {
        row.tobytes() for row in load("digits", seed=4, max_train=100).test.samples.tensors[0].numpy()
    }
    assert {row.tobytes() for row in images(some.test).numpy()} < everything


def test_pictures_can_be_made_larger_or_smaller():
    for size in (4, 16):
        bundle = load("digits", image_size=size, max_train=200)
        assert (
            bundle.inputs.shape
            == images(bundle.train).shape[1:]
            == images(bundle.test).shape[1:]
            == (1, size, size)
        )
        assert_close(images(bundle.train).mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        assert_close(images(bundle.train).std(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_pictures_that_are_not_square_lose_their_long_sides(tmp_path):
    wide = np.concatenate([noise(8, 0), with_corner(8), noise(8, 1)], axis=1)
    for part in ("train", "test"):
        write_parquet_pictures(tmp_path / f"{part}.parquet", [wide, wide], [0, 1])
    bundle = load("parquet", str(tmp_path), image_size=8)
    assert corner_found(images(bundle.train)[0])


def test_a_part_hands_out_rows_in_the_order_asked_for():
    part = load("digits", max_train=50).train
    rows = part.rows(np.array([7, 3]))
    assert isinstance(rows, TensorDataset)
    assert torch.equal(rows.tensors[0], images(part)[[7, 3]])
    assert torch.equal(rows.tensors[1], part.labels[[7, 3]])


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        (
            "cifar-10",
            {},
            "unknown data set 'cifar-10': the known ones are digits, .* did you mean 'cifar10'?",
        ),
        ("zzz", {}, "unknown data set 'zzz': the known ones are digits, [^?]*$"),
        ("digits", {"seed": -1}, "seed must be 0 or more, got -1"),
        ("digits", {"max_train": -1}, r"max_train must be 0 or more \(0: everything\), got -1"),
        ("digits", {"max_test": 3}, "no sample of class .* to test on; raise max_test"),
        ("digits", {"max_train": 5}, "no sample of class .* to train on; raise max_train"),
        (
            "digits",
            {"image_size": 2000},
            "1797 pictures of 2000x2000 pixels take 27 GiB, over the limit of 8",
        ),
        ("digits", {"tokens": 0}, "tokens must be 1 or more, got 0"),
        ("digits", {"vocabulary": 2}, "vocabulary must be 3 or more .* got 2"),
        ("cifar10", {}, "'cifar10' needs a folder with its files: none was given as root"),
        ("mnist", {"root": "/nowhere"}, "no mnist .* in /nowhere"),
        ("parquet", {"root": "/nowhere"}, r"no train\*.parquet in /nowhere"),
        ("image-folder", {}, "needs a folder with the folders train and val"),
    ],
)
def test_bad_input_is_refused(name, settings, says):
    with pytest.raises(DatasetError, match=says):
        load(name, **settings)


def test_a_class_without_test_pictures_and_unlabelled_ones_are_refused(tmp_path):
    for folder, labels, says in (
        ("empty", [0, 0], "no sample of class 1 to test on; add some"),
        ("unlabelled", [-1, -1], "labels below 0"),
    ):
        root = tmp_path / folder
        for part, own in (("train", [0, 1]), ("test", labels)):
            write_parquet_pictures(root / f"{part}.parquet", [noise(8, 0), noise(8, 1)], own)
        with pytest.raises(DatasetError, match=says):
            load("parquet", str(root))


def test_one_class_is_too_few(tmp_path):
    for part in ("train", "test"):
        write_parquet_pictures(tmp_path / f"{part}.parquet", [noise(8, 0)], [0])
    with pytest.raises(DatasetError, match="needs at least two classes, found 1"):
        load("parquet", str(tmp_path))


def test_the_command_prints_what_a_data_set_is(capsys):
    assert main(["digits", "--max-train", "100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "input: (1, 8, 8), vocabulary 0"
    assert [line.split() for line in printed if line.startswith("all")] == [["all", "100", "360"]]
    assert len([line for line in printed if line.startswith("sample ")]) == 3
    assert main(["digit"]) == 1
    assert "did you mean 'digits'?" in capsys.readouterr().err
