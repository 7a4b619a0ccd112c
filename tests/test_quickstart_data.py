from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

pytest.importorskip("sklearn")
pytest.importorskip("flwr_datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).parents[1] / "simulations" / "quickstart"))
from fl_unlearn_quickstart import data, partition, task  # noqa: E402

CONFIG = {"dataset": "digits", "data-root": "", "download": False, "max-train-examples": 0, "seed": 0}
CONFIG |= {"alpha": 1.0, "holders": 0, "forget-classes": "", "batch-size": 32}


# --------------------------------------------------------------------------- data
def write_parquet(path, labels, *, mode="RGB", image="img", label="label", picture=None, embed=True):
    """One shard; every picture has the grey value 10 * label unless `picture` makes another."""
    rows = []
    for y in labels:
        colour = 10 * y if mode == "L" else (10 * y, 0, 255)
        made = picture(y) if picture else Image.new(mode, (32, 32), colour)
        buffer = io.BytesIO()
        made.save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue() if embed else None, "path": "a.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: pa.array(rows, kind), label: list(labels)}), path)


def write_mnist(root, split_sizes):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, n in split_sizes.items():
        images = struct.pack(">IIII", 0x803, n, 28, 28) + bytes(i % 256 for i in range(n * 784))
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def test_digits_are_complete_normalised_and_stratified():
    bundle = data.load("digits", seed=3)
    assert (bundle.image_shape, bundle.num_classes) == ((1, 8, 8), 10)
    assert len(bundle.train.labels) + len(bundle.test.labels) == 1797
    assert (bundle.train.images.dtype, bundle.train.labels.dtype) == (torch.float32, torch.int64)
    assert_close(bundle.train.images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(bundle.train.images.std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert 34 <= torch.bincount(bundle.test.labels).min() <= torch.bincount(bundle.test.labels).max() <= 38


def test_digits_split_depends_on_the_seed_alone():
    first = data.load("digits", seed=3)
    assert data.load("digits", seed=3) is first
    data.load.cache_clear()
    again, other = data.load("digits", seed=3), data.load("digits", seed=4)
    assert_close(again.train.images, first.train.images, rtol=0, atol=0)
    assert not torch.equal(other.train.labels, first.train.labels)


@pytest.mark.parametrize("size", [1, 100, 1436])
def test_max_train_keeps_every_class_in_proportion(size):
    everything, some = data.load("digits", seed=0), data.load("digits", seed=0, max_train=size)
    assert len(some.train.labels) == size
    share = torch.bincount(everything.train.labels) * size / len(everything.train.labels)
    assert (torch.bincount(some.train.labels, minlength=10) - share).abs().max() <= 1
    assert_close(some.test.labels, everything.test.labels)


@pytest.mark.parametrize("where", ["", "data"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_parquet_reads_shards_in_order(tmp_path, where, label):
    write_parquet(tmp_path / where / "train-00000-of-00002.parquet", [0, 1, 2], label=label)
    write_parquet(tmp_path / where / "train-00001-of-00002.parquet", [3, 4], label=label)
    write_parquet(tmp_path / where / "test-00000-of-00001.parquet", [5, 0], label=label)
    bundle = data.load("parquet", str(tmp_path), seed=0)
    assert (bundle.image_shape, bundle.num_classes) == ((3, 32, 32), 6)
    assert (bundle.train.labels.tolist(), bundle.test.labels.tolist()) == ([0, 1, 2, 3, 4], [5, 0])
    red = torch.tensor([0.0, 10, 20, 30, 40]) / 255
    pixels = red.repeat_interleave(1024)
    expected = (red - pixels.mean()) / pixels.std()
    assert_close(bundle.train.images[:, 0, 7, 9], expected)
    assert_close(bundle.train.images[:, 2], torch.zeros(5, 32, 32), atol=1e-3, rtol=0)


def test_parquet_keeps_rows_and_columns_of_a_picture_in_place(tmp_path):
    def picture(y):
        return Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)

    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1], image="image", picture=picture)
    images = data.load("parquet", str(tmp_path), seed=0).train.images
    assert images.shape == (2, 1, 3, 4)
    flat = images[0].flatten()
    assert_close(flat.diff(), flat.diff()[0].expand(11))
    assert flat[1] > flat[0]


def test_parquet_subset_has_the_pictures_of_its_labels(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2, 3] * 5, mode="L")
    write_parquet(tmp_path / "test.parquet", [0], mode="L")
    train = data.load("parquet", str(tmp_path), seed=1, max_train=8).train
    assert torch.bincount(train.labels).tolist() == [2, 2, 2, 2]
    grey = train.images[:, 0, 0, 0]
    step = grey[train.labels == 1][0] - grey[train.labels == 0][0]
    assert step > 0
    assert_close(grey, grey[train.labels == 0][0] + step * train.labels)


def test_mnist_is_read_from_its_folder_without_a_download(tmp_path):
    pytest.importorskip("torchvision")
    write_mnist(tmp_path, {"train": 20, "t10k": 10})
    bundle = data.load("mnist", str(tmp_path), seed=0)
    assert bundle.image_shape == (1, 28, 28)
    assert (bundle.train.labels.tolist(), len(bundle.test.labels)) == ([*range(10), *range(10)], 10)


@pytest.mark.parametrize(("name", "message"), [("cifar10", "download"), ("parquet", r"train\*\.parquet")])
def test_missing_data_names_the_folder_searched_and_what_to_do(tmp_path, name, message):
    pytest.importorskip("torchvision")
    with pytest.raises(FileNotFoundError, match=message) as caught:
        data.load(name, str(tmp_path), seed=0)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "max_train", "message"),
    [
        ("fashion_mnist", 0, "digits.*did you mean 'fashion-mnist'"),
        ("digits", -1, "max-train-examples.*-1"),
        ("parquet", 0, "data-root"),
        ("mnist", 0, "data-root"),
    ],
)
def test_unusable_arguments_are_explained(name, max_train, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(name, seed=0, max_train=max_train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "target"}, "label or labels or fine_label, has img, target"),
        ({"image": "picture"}, "img or image, has picture, label"),
        ({"labels": [0, -1]}, "labels below 0"),
        ({"labels": []}, "empty"),
        ({"embed": False}, "no picture bytes"),
        ({"picture": lambda y: Image.new("L", (8 + y, 8))}, "share one size"),
    ],
)
def test_unsuitable_parquet_is_explained(tmp_path, changes, message):
    arguments = {"labels": [0, 1], **changes}
    write_parquet(tmp_path / "train.parquet", **arguments)
    write_parquet(tmp_path / "test.parquet", **arguments)
    with pytest.raises(ValueError, match=message):
        data.load("parquet", str(tmp_path), seed=0)


# --------------------------------------------------------------------------- partition
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=6),
    clients=st.integers(1, 6),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 2**32 - 1),
    forget=st.sets(st.integers(0, 1), max_size=1),
    holders=st.integers(0, 6),
)
def test_every_sample_has_exactly_one_owner(counts, clients, alpha, seed, forget, holders):
    holders = min(holders, clients)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        owned = partition.assign(
            labels, clients, alpha=alpha, seed=seed, forget_classes=forget, holders=holders
        )
    except ValueError as error:
        assert "raise alpha" in str(error)  # noqa: PT017 (the only refusal these inputs may meet)
        return
    assert len(owned) == clients
    assert np.array_equal(np.sort(np.concatenate(owned)), np.arange(len(labels)))
    assert all(len(share) for share in owned)
    if holders:
        for label in forget:
            assert [c for c, share in enumerate(owned) if label in labels[share]] == list(range(holders))


def digit_labels():
    return data.load("digits", seed=0).train.labels


def test_shares_depend_on_the_seed_alone():
    first, again, other = (partition.assign(digit_labels(), 10, alpha=1.0, seed=s) for s in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_smaller_alpha_skews_the_labels_more():
    def largest_class_share(alpha):
        labels = digit_labels().numpy()
        owned = partition.assign(labels, 10, alpha=alpha, seed=0)
        return np.mean([np.bincount(labels[s]).max() / len(s) for s in owned])

    assert largest_class_share(0.3) > largest_class_share(1.0) > largest_class_share(100.0)


def test_only_forgotten_classes_move_each_to_its_own_holders_in_even_parts():
    labels = digit_labels().numpy()
    before = partition.assign(labels, 10, alpha=1.0, seed=0)
    owned = partition.assign(labels, 10, alpha=1.0, seed=0, forget_classes=(9, 1, 4, 2), holders=3)
    for a, b in zip(before, owned, strict=True):
        assert np.array_equal(*(share[~np.isin(labels[share], (9, 1, 4, 2))] for share in (a, b)))
    for label, expected in ((1, [0, 1, 2]), (2, [3, 4, 5]), (4, [6, 7, 8]), (9, [9, 0, 1])):
        parts = {c: int((labels[s] == label).sum()) for c, s in enumerate(owned)}
        held = [c for c in parts if parts[c]]
        assert held == sorted(expected)
        assert max(parts[c] for c in held) - min(parts[c] for c in held) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clients": 0}, "at least one client"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"holders": 11}, "holders must lie between 0 and the 10"),
        ({"holders": -1}, "holders must lie"),
        ({"forget_classes": (12,)}, "class 12 .* 0 samples"),
        ({"forget_classes": range(10), "holders": 1, "num_clients": 11}, "clients \\[10\\] own nothing"),
        ({"num_clients": 2000, "holders": 0}, "take fewer clients"),
    ],
)
def test_impossible_shares_are_refused(changes, message):
    arguments = {"num_clients": 10, "alpha": 1.0, "seed": 0, "forget_classes": (3,), "holders": 2, **changes}
    with pytest.raises(ValueError, match=message):
        partition.assign(digit_labels(), **arguments)


def test_local_split_is_stratified_and_complete():
    labels = np.repeat([0, 1, 2, 3], [50, 10, 1, 2])
    own = np.arange(len(labels))
    train, held_out = partition.split_local(own, labels, seed=0)
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), own)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 2, 0, 0]
    assert np.array_equal(partition.split_local(own, labels, seed=0)[1], held_out)
    assert not np.array_equal(partition.split_local(own, labels, seed=1)[1], held_out)
    assert set(labels[partition.split_local(own, labels, seed=0, held_out=0.99)[0]]) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="held_out"):
        partition.split_local(own, labels, seed=0, held_out=1.0)


# --------------------------------------------------------------------------- task
def trained(loader, seed, **changes):
    model = task.build_model((1, 8, 8), 10, seed=0)
    settings = {"epochs": 2, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, **changes}
    return model, task.train(model, loader, device="cpu", seed=seed, **settings)


@pytest.mark.parametrize(
    ("shape", "low", "high"), [((1, 8, 8), 15e3, 25e3), ((1, 28, 28), 2e5, 6e5), ((3, 32, 32), 3e5, 6e5)]
)
def test_model_is_seeded_and_sized_by_the_pictures(shape, low, high):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    model, again, other = (task.build_model(shape, 7, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)
    assert low < sum(p.numel() for p in model.parameters()) < high
    assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert not torch.equal(other.head.weight, model.head.weight)
    assert isinstance(model.fc, torch.nn.Linear)


def test_training_learns_and_depends_on_its_seed_alone():
    loader, _ = task.load_client_data(0, 10, CONFIG)
    (model, result), (again, result_again), (other, _) = (trained(loader, s) for s in (1, 1, 2))
    assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert result == result_again
    assert not torch.equal(other.head.weight, model.head.weight)
    before = task.evaluate(task.build_model((1, 8, 8), 10, seed=0), loader, "cpu")
    after = task.evaluate(model, loader, "cpu")
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_excluded_labels_are_neither_counted_nor_learned():
    loader, _ = task.load_client_data(0, 10, CONFIG)
    labels = loader.dataset.tensors[1]
    _, (_, examples) = trained(loader, 1, exclude={0, 5})
    assert examples == len(labels) - int(torch.isin(labels, torch.tensor([0, 5])).sum()) < len(labels)
    model, result = trained(loader, 1, exclude=range(10))
    assert result == (0.0, 0)
    assert_close(model.head.weight, task.build_model((1, 8, 8), 10, seed=0).head.weight, rtol=0, atol=0)


def test_evaluation_is_the_mean_over_pictures():
    model, test = task.build_model((1, 8, 8), 10, seed=0), task.load_test_data(CONFIG)
    images, labels = test.dataset.tensors
    assert len(labels) == 360
    loss, accuracy = task.evaluate(model, torch.utils.data.DataLoader(test.dataset, batch_size=7), "cpu")
    logits = model(images).detach()
    picked = logits.log_softmax(1)[torch.arange(360), labels]
    assert_close(loss, -picked.mean().item())
    assert_close(accuracy, (logits.argmax(1) == labels).double().mean().item())


def test_clients_together_have_every_training_picture_once_in_seeded_order():
    pairs = [task.load_client_data(c, 10, CONFIG) for c in range(10)]
    images = torch.cat([loader.dataset.tensors[0] for pair in pairs for loader in pair])
    everything = data.load("digits", seed=0).train.images
    assert_close(images.flatten(1).sum(1).sort().values, everything.flatten(1).sum(1).sort().values)
    batch_images, batch_labels = next(iter(pairs[0][0]))
    assert (batch_images.shape, batch_labels.shape) == ((32, 1, 8, 8), (32,))
    same, other = (task.load_client_data(0, 10, CONFIG, shuffle_seed=s)[0] for s in (0, 1))
    assert_close(next(iter(same))[1], batch_labels)
    assert not torch.equal(next(iter(other))[1], batch_labels)


def test_config_places_the_class_and_exclude_spares_the_held_out_pictures():
    config = {**CONFIG, "forget-classes": "3", "holders": 2}
    for client, owns in ((0, True), (1, True), (2, False)):
        labels = [loader.dataset.tensors[1] for loader in task.load_client_data(client, 10, config)]
        assert [3 in part for part in labels] == [owns, owns]
    train, held_out = task.load_client_data(0, 10, config, exclude=(3,))
    assert 3 not in train.dataset.tensors[1]
    assert 3 in held_out.dataset.tensors[1]
    nothing, _ = task.load_client_data(0, 10, config, exclude=range(10))
    assert list(nothing) == []
    for client in (-1, 10):
        with pytest.raises(ValueError, match="between 0 and 9"):
            task.load_client_data(client, 10, config)


def test_classes_are_read_from_text():
    assert [task.parse_classes(t) for t in ("", "3", " 9, 1,9")] == [(), (3,), (1, 9)]
    for text in ("a", "1;2", "-1"):
        with pytest.raises(ValueError, match="forget-classes"):
            task.parse_classes(text)
