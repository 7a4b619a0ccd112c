"""Configs: what is in a file, what is wrong with it, and the shipped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.inheritance import write_configs
from simulations.inheritance.checks import check_names
from simulations.inheritance.config import Config, ConfigError, read_changes
from simulations.inheritance.grid import FOLDER, SHIPPED


def test_a_file_says_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('# mine\nscenario = "depth"\nforget = 3\nlr = 1\nfirst-epochs = 9\ndownload = true\n')
    config = Config.from_file(path, {"lr": 0.5})
    assert config == Config(scenario="depth", forget="3", lr=0.5, first_epochs=9, download=True)
    assert config.forget_labels() == (3,)
    assert Config.from_mapping(config.to_mapping()) == config


def test_empty_texts_leave_it_to_the_scenario() -> None:
    config = Config(methods="ours, paper,,ours", milestones="60, 120")
    assert config.forget_labels() is None
    assert config.milestone_epochs() == (60, 120)
    assert config.method_names() == ("ours", "paper")


def test_all_unknown_keys_are_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError) as e:
        Config.from_mapping({"epoch": 1, "seed": 2, "learning-rat": 0.1})
    assert "unknown key 'epoch' (did you mean 'epochs'?)" in str(e.value)
    assert "unknown key 'learning-rat'" in str(e.value)
    assert "scenario, length, overlap" in str(e.value)
    assert Config.from_mapping({"epoch": 1, "seed": 2}, others=("epoch",)) == Config(seed=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch-size": 1}, "batch-size must be at least 2, got 1"),
        ({"samples": -1}, "samples must be at least 0, got -1"),
        ({"momentum": 1.5}, "momentum must be at least 0 and at most 1, got 1.5"),
        ({"lr": 0.0}, "lr must be a number above 0, got 0"),
        ({"lr": float("nan")}, "lr must be a number above 0, got nan"),
        ({"lr": float("inf")}, "lr must be a number above 0, got inf"),
        ({"weight-decay": float("inf")}, "weight-decay must be at least 0, got inf"),
        ({"overlap": -0.5}, "overlap must be between 0 and 1, or -1 for the scenario's own, got -0.5"),
        ({"reference-share": 0.0}, "reference-share must be above 0 and at most 1, got 0"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg' (did you mean 'sgd'?)"),
        ({"size": "tiny"}, "unknown size 'tiny'; the known ones are full, small"),
        ({"forget": "1;2"}, "forget must be whole numbers with commas between them, got '1;2'"),
        ({"milestones": "a"}, "milestones must be whole numbers"),
        ({"epochs": 2.5}, "epochs must be of type int, got 2.5"),
        ({"epochs": True}, "epochs must be of type int, got True"),
        ({"lr": "fast"}, "lr must be of type float, got 'fast'"),
        ({"scenario": ["depth"]}, "scenario must be of type str, got ['depth']"),
        ({"download": 1}, "download must be of type bool, got 1"),
    ],
)
def test_values_that_make_no_sense(given, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        Config.from_mapping(given)
    assert said in str(e.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"epochs .* got 0; .*lr .* got -1; unknown optimizer 'x'"):
        Config(epochs=0, lr=-1, optimizer="x")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*no\.toml: No such file"):
        Config.from_file(tmp_path / "no.toml")
    for content, said in ((b"epochs = ", "is no TOML"), (b"\xff", "is no TOML"), (b"epohs = 1", "'epochs'")):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=said) as e:
            Config.from_file(tmp_path / "bad.toml")
        assert "bad.toml" in str(e.value)


def test_changes_are_read_by_the_type_of_their_key() -> None:
    given = ["epochs=5", "lr=1", "forget=1,2", "download=true", "data-root=/a=b"]
    assert read_changes(given) == {
        "epochs": 5, "lr": 1.0, "forget": "1,2", "download": True, "data-root": "/a=b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("epochs", "must look like epochs=3, got 'epochs'"),
        ("epoch=3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ("epochs=few", "epochs must be of type int, got 'few'"),
        ("download=yes", "download must be true or false, got 'yes'"),
    ],
)
def test_changes_that_make_no_sense(item: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        read_changes([item])
    assert said in str(e.value)


def test_the_shipped_configs_are_what_the_script_writes(tmp_path: Path, capsys) -> None:
    (tmp_path / "old.toml").write_text("")
    assert write_configs.main(["--out", str(tmp_path)]) == 0
    written = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert written == {p.name: p.read_text() for p in FOLDER.glob("*.toml")}, "run write_configs"
    assert f"{len(SHIPPED)} configs" in capsys.readouterr().out


def test_every_shipped_config_loads_and_names_what_exists() -> None:
    for shipped in SHIPPED:
        path = FOLDER / f"{shipped.name}.toml"
        config = Config.from_file(path)
        check_names(config)
        assert path.read_text().startswith(f"# {shipped.scenario} on "), shipped.name
        assert config.size == ("small" if shipped.small else "full")


def test_the_shipped_configs_have_the_papers_values() -> None:
    """As design notes give them: SGD 0.1 (AlexNet 0.01, VGG 0.001), BERT Adam 2e-5, 100 epochs a model..."""
    configs = {s.name: Config.from_file(FOLDER / f"{s.name}.toml") for s in SHIPPED if not s.small}
    assert {c.epochs for c in configs.values()} == {100}
    assert {c.milestones for c in configs.values()} == {"60,120,160,200"}
    assert {(c.gamma, c.momentum) for c in configs.values()} == {(0.2, 0.9)}
    rates = {(c.model, c.optimizer, c.lr, c.paper_threshold, c.paper_divisor) for c in configs.values()}
    assert rates == {
        ("resnet18", "sgd", 0.1, 100.0, 1.0),
        ("alexnet", "sgd", 0.01, 100.0, 50.0),
        ("vgg16", "sgd", 0.001, 300.0, 5.0),
        ("densenet161", "sgd", 0.1, 300.0, 5.0),
        ("vit", "sgd", 0.1, 100.0, 5.0),
        ("lstm", "sgd", 0.1, 100.0, 5.0),
        ("gcnn", "sgd", 0.1, 100.0, 5.0),
        ("bert", "adam", 2e-5, 100.0, 5.0),
    }
    assert len({c.scenario for c in configs.values() if c.dataset == "cifar100"}) == 8
