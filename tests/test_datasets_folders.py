from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.data import DataLoader, Subset, TensorDataset

pytest.importorskip("datasets")
pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

from dataset_files import (  # noqa: E402
    corner_found,
    noise,
    plain,
    save,
    with_corner,
    write_image_folder,
    write_tiny_imagenet,
)
from references_datasets import colour_statistics  # noqa: E402

from simulations.datasets import DatasetError, load, picture_files  # noqa: E402


def images(part):
    return torch.stack([part.samples[i][0] for i in range(len(part.labels))])


def greys(part, statistics):
    """The grey of every picture of `write_image_folder`, to the nearest ten."""
    mean, std = statistics
    return [round(float(x.mean() * std[0] + mean[0]) * 25.5) * 10 for x in images(part)]


def test_image_folder_keeps_the_parts_apart_and_the_labels_right(tmp_path):
    bundle = load("image-folder", str(write_image_folder(tmp_path)), image_size=16)
    assert (bundle.inputs.shape, bundle.num_classes, bundle.classes) == ((3, 16, 16), 2, ("ant", "bee"))
    assert (
        bundle.about
        == f"pictures of the folder {tmp_path.name}, 16x16 pixels, normalised by all training pictures"
    )
    assert (bundle.train.labels.tolist(), bundle.test.labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    known = colour_statistics([plain(1, v).transpose(2, 0, 1) for v in range(10, 70, 10)])
    assert greys(bundle.train, known) == [10, 20, 30, 40, 50, 60]
    assert greys(bundle.test, known) == [70, 80, 90, 100]
    assert isinstance(bundle.train.samples, TensorDataset)
    assert_close(images(bundle.train).mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(images(bundle.train).std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_image_folder_takes_test_where_there_is_no_val(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    bundle = load("image-folder", str(tmp_path))
    assert (bundle.inputs.shape, bundle.test.labels.tolist()) == ((3, 224, 224), [0, 0, 1, 1])


def test_tiny_imagenet_reads_its_own_lists(tmp_path):
    bundle = load("tiny-imagenet", str(write_tiny_imagenet(tmp_path)))
    assert (bundle.inputs.shape, bundle.classes) == ((3, 64, 64), ("n01", "n02"))
    assert (bundle.train.labels.tolist(), bundle.test.labels.tolist()) == ([0, 0, 1, 1], [1, 0, 1, 0])
    assert [corner_found(image) for image in images(bundle.test)] == [True, False, False, False]


def test_pictures_that_do_not_fit_into_memory_are_decoded_when_used(tmp_path, monkeypatch):
    root = str(write_tiny_imagenet(tmp_path))
    kept = load("tiny-imagenet", root)
    monkeypatch.setattr(picture_files, "IN_MEMORY_BYTES", 0)
    lazy = load("tiny-imagenet", root, tokens=1)
    assert isinstance(lazy.train.samples, picture_files.PictureFiles)
    assert lazy.about.endswith("normalised by 4 training pictures")
    for one, other in ((kept.train, lazy.train), (kept.test, lazy.test)):
        assert torch.equal(one.labels, other.labels)
        assert_close(images(one), images(other), rtol=0, atol=0)
    rows = lazy.test.rows(np.array([2, 0]))
    assert isinstance(rows, Subset)
    assert corner_found(rows[1][0])
    inputs, labels = next(iter(DataLoader(pickle.loads(pickle.dumps(rows)), batch_size=2)))
    assert (inputs.shape, labels.tolist()) == ((2, 3, 64, 64), [1, 1])


def test_a_lazy_data_set_draws_its_statistics_from_training_pictures_alone(tmp_path, monkeypatch):
    write_image_folder(tmp_path, train=4)
    monkeypatch.setattr(picture_files, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(picture_files, "STATISTICS_SAMPLE", 2)
    for path in (tmp_path / "val").rglob("*.JPEG"):
        path.write_bytes(b"not looked at")
    bundle = load("image-folder", str(tmp_path), image_size=8)
    assert bundle.about.endswith("normalised by 2 training pictures")
    assert bundle.test.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DatasetError, match=r"ant_0.JPEG: cannot be read as a picture .* replace or remove"):
        bundle.test.samples[0]


def test_subsets_follow_the_seed(tmp_path):
    root = str(write_image_folder(tmp_path, train=6))
    settings = {"image_size": 8, "max_train": 4, "max_test": 2}
    first, again = (load("image-folder", root, seed=1, tokens=t, **settings) for t in (1, 2))
    assert (first.train.labels.tolist(), first.test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert torch.equal(images(first.train), images(again.train))
    drawn = {
        tuple(images(load("image-folder", root, seed=s, **settings).train)[:, 0, 0, 0]) for s in range(4)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp"])
def test_formats_are_decoded_upright(tmp_path, name):
    save(tmp_path / name, with_corner(64))
    assert corner_found(picture_files.decode(tmp_path / name, 64))


def test_every_kind_of_colour_becomes_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    palette = red.quantize(4)
    palette.info["transparency"] = bytes([0, 255])
    kinds = {"L.png": red.convert("L"), "1.png": Image.new("1", (8, 8), 1), "P.png": palette}
    kinds |= {"RGBA.png": red.convert("RGBA"), "CMYK.tiff": red.convert("CMYK"), "LA.png": red.convert("LA")}
    expected = {"L.png": (76, 76, 76), "1.png": (255, 255, 255), "LA.png": (76, 76, 76)}
    for name, picture in kinds.items():
        save(tmp_path / name, picture)
        pixel = picture_files.decode(tmp_path / name, 8)
        assert pixel.shape == (3, 8, 8)
        assert tuple(pixel[:, 3, 3].tolist()) == expected.get(name, (255, 0, 0)), name


def test_the_middle_of_an_oblong_picture_is_kept(tmp_path):
    tall = np.concatenate([plain(16, 0), with_corner(16), plain(16, 0)])
    save(tmp_path / "a.png", tall)
    assert corner_found(picture_files.decode(tmp_path / "a.png", 16))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_statistics_of_colours(seed, count):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 2), dtype=np.uint8)
    found = picture_files.Normalisation.of(torch.from_numpy(pixels))
    means, stds = colour_statistics(pixels)
    assert_close(found.mean.flatten(), torch.tensor(means), atol=1e-5, rtol=0)
    assert_close(found.std.flatten(), torch.tensor(stds), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------- bad input
def without_val(root):
    shutil.rmtree(root / "val")


def extra_class(root):
    save(root / "val" / "cow" / "a.png", noise(8, 0))


def empty_class(root):
    for path in (root / "train" / "bee").iterdir():
        path.unlink()


def flat(root):
    shutil.rmtree(root / "val")
    save(root / "val" / "a.JPEG", noise(8, 0))


def broken(root):
    path = root / "train" / "bee" / "bee_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_val, "there is no folder .*val; it must hold one folder per class"),
        (extra_class, "same classes: none only in the former, cow only in the latter"),
        (empty_class, "train: Found no valid file for the classes bee"),
        (flat, "val: Couldn't find any class folder"),
        (broken, "bee_1.JPEG: cannot be read as a picture"),
    ],
)
def test_unsuitable_image_folders_are_refused(tmp_path, spoil, says):
    spoil(write_image_folder(tmp_path))
    with pytest.raises(DatasetError, match=says):
        load("image-folder", str(tmp_path), image_size=8)


def no_wnids(root):
    (root / "wnids.txt").unlink()


def other_wnids(root):
    (root / "wnids.txt").write_text("n01\nn03\n")


def unknown_class(root):
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\t0\t0\t1\t1\n")


def unlabelled(root):
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")


def no_picture(root):
    (root / "val" / "images" / "val_1.JPEG").unlink()


def nothing_listed(root):
    (root / "val" / "val_annotations.txt").write_text("\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_wnids, "there is no file .*wnids.txt"),
        (other_wnids, "same classes: n02 only in the former, n03 only in the latter"),
        (unknown_class, "line 1: must be a file, a tab and a class of train/, got .*n09"),
        (unlabelled, "line 1: must be a file, a tab and a class of train/, got 'val_0.JPEG'"),
        (no_picture, "line 2: there is no file .*val_1.JPEG"),
        (nothing_listed, "lists no picture"),
    ],
)
def test_unsuitable_tiny_imagenets_are_refused(tmp_path, spoil, says):
    spoil(write_tiny_imagenet(tmp_path))
    with pytest.raises(DatasetError, match=says):
        load("tiny-imagenet", str(tmp_path))


def test_a_file_is_no_folder(tmp_path):
    save(tmp_path / "a.png", noise(8, 0))
    with pytest.raises(DatasetError, match=r"a.png is not a folder; name the one with"):
        load("image-folder", str(tmp_path / "a.png"))
