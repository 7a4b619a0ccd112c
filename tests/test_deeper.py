"""The table "forgetting deeper than the head", on a federation small enough to train here."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fl_unlearn.dampen import apply_update, build_update
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.probes import features
from fl_unlearn.types import signature_of
from fl_unlearn.verify import score_state
from simulations.figures.deeper import __main__ as deeper
from simulations.figures.deeper import fiun, measure, table, train, variants
from simulations.figures.deeper.bench import Bench, in_batches, pick
from simulations.quickstart.fl_unlearn_quickstart import task

SETTING = train.Setting(dataset="digits", pictures=400, clients=2, rounds=3, lr=0.1)
CLASS = 6


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deeper")
    train.train_all(SETTING, folder, [CLASS])
    return folder


@pytest.fixture(scope="module")
def bench(out: Path) -> Bench:
    return Bench(SETTING, out)


# --------------------------------------------------------------------------- training
def test_an_interrupted_training_goes_on_to_the_same_model(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_round, left = train.fedavg_round, [2]

    def dies(*arguments: object, **options: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        one_round(*arguments, **options)

    monkeypatch.setattr(train, "fedavg_round", dies)
    with pytest.raises(KeyboardInterrupt):
        train.train_all(SETTING, tmp_path, [CLASS])
    monkeypatch.undo()
    train.train_all(SETTING, tmp_path, [CLASS])
    for path in sorted((out / "models").glob("*.safetensors")):
        torch.testing.assert_close(
            load_file(tmp_path / "models" / path.name), load_file(path), rtol=0, atol=0
        )
    assert len(list((tmp_path / "models").iterdir())) == SETTING.rounds + 2


def test_what_is_there_is_not_trained_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "fedavg_round", None)
    train.train_all(SETTING, out, [CLASS])
    with pytest.raises(ValueError, match="another setting"):
        train.train_all(train.Setting(dataset="digits", rounds=3), out, [CLASS])


def test_a_round_is_the_mean_of_what_the_clients_train_weighted_by_samples(bench: Bench, out: Path) -> None:
    data = SETTING.load()
    model = task.build_model(data.image_shape, data.num_classes, 0)
    start, ends = {n: t.clone() for n, t in model.state_dict().items()}, []
    for client, loader in enumerate(train.client_loaders(SETTING, 0)):
        model.load_state_dict(start)
        seed = task.round_seed({"seed": 0}, 1, client)
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "device": "cpu", "seed": seed}
        task.train(model, loader, epochs=1, exclude={CLASS}, **options)
        own = int((bench.clients[client].labels != CLASS).sum())
        ends.append((own, {n: t.clone().double() for n, t in model.state_dict().items()}))
    total = sum(n for n, _ in ends)
    wanted = {n: sum(k * end[n] for k, end in ends) / total for n in start}
    model.load_state_dict(start)
    train.fedavg_round(model, SETTING, 0, 1, exclude={CLASS})
    torch.testing.assert_close(dict(model.state_dict()), {n: t.float() for n, t in wanted.items()})


# --------------------------------------------------------------------------- bench
def test_scores_by_way_of_the_convolutions_are_those_of_the_whole_model(bench: Bench) -> None:
    changed = {n: t + 0.01 for n, t in bench.final.items()}
    net = task.build_model(SETTING.load().image_shape, 10, 0)
    for state in (bench.rounds[0], bench.final, changed, bench.final):
        whole = score_state(net, state, in_batches(bench.test))
        quick = bench.scores(state, bench.test)
        assert quick.correct == whole.correct
        assert quick.loss == pytest.approx(whole.loss, rel=1e-4)


def test_clients_share_all_pictures(bench: Bench) -> None:
    rows = torch.cat([c.images.flatten(1) for c in bench.clients])
    whole = bench.train.images.flatten(1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, whole.tolist()))


# --------------------------------------------------------------------------- variants
def test_mask_removes_the_class_and_nothing_else(bench: Bench) -> None:
    masked = variants.VARIANTS["mask the logit"](bench, CLASS).apply(bench.final)
    x = bench.test.images[:50]
    with torch.no_grad():
        before, after = bench.model(bench.final)(x), bench.model(masked)(x)
    others = [c for c in range(10) if c != CLASS]
    torch.testing.assert_close(after[:, others], before[:, others])
    assert (after[:, CLASS] == variants.MASKED).all()
    assert variants.is_masked(masked, CLASS)
    assert not variants.is_masked(bench.final, CLASS)


@pytest.mark.parametrize("scope", ["head", "fc.*,head.*", "all"])
def test_fiun_is_the_products_update_at_the_chosen_threshold(bench: Bench, scope: str) -> None:
    operation = fiun.fiun(bench, CLASS, scope)
    sums = fiun.client_fishers(bench, dict(bench.final), scope)  # another object: computed afresh
    forget = merge([FisherPart(str(k), CLASS, s.mean([CLASS]), s.counts[CLASS]) for k, s in enumerate(sums)])
    reference = (sums[0] + sums[1]).without([CLASS]).mean()
    update = build_update(
        forget,
        reference,
        threshold=operation.notes["threshold"],
        dampening=operation.notes["dampening"],
        signature=signature_of(bench.final),
    )
    for state in bench.rounds:
        torch.testing.assert_close(operation.apply(state), apply_update(state, update), rtol=1e-3, atol=1e-6)
    assert bench.scores(operation.apply(bench.final), bench.train).accuracy([CLASS]) <= 0.02
    assert operation.notes["passed"] == 1.0


def test_what_comes_first_is_applied_first_and_known_to_the_update(bench: Bench) -> None:
    def halved(state: train.State) -> train.State:
        return {n: t / 2 if n.startswith("fc.") else t for n, t in state.items()}

    operation = fiun.fiun(bench, CLASS, "head", fiun.Operation(halved, {"strength": 1.0}))
    after = operation.apply(bench.final)
    torch.testing.assert_close(after["fc.weight"], bench.final["fc.weight"] / 2)
    assert not torch.equal(after["head.weight"], bench.final["head.weight"])
    assert operation.notes["strength"] == 1.0
    plain = fiun.fiun(bench, CLASS, "head").apply(bench.final)
    assert not torch.equal(after["head.weight"], plain["head.weight"]), "its Fisher is of the model after"


# --------------------------------------------------------------------------- measures
def test_measures_of_one_model(bench: Bench, tmp_path: Path) -> None:
    measures = measure.Measures(bench, tmp_path)
    masked = variants.VARIANTS["mask the logit"](bench, CLASS)
    found = measures.final(masked.apply(bench.final), CLASS)
    own, others = bench.test.labels == CLASS, bench.test.labels != CLASS
    with torch.no_grad():
        z = bench.model(bench.final)(bench.test.images)
    before = float((z[others].argmax(1) == bench.test.labels[others]).double().mean())
    z[:, CLASS] = -torch.inf
    after = float((z[others].argmax(1) == bench.test.labels[others]).double().mean())
    assert found["forgotten"] == 0.0
    assert found["retained"] == pytest.approx(after)
    assert found["retained drop"] == pytest.approx(before - after)
    assert found["probe"] == measures.probe(bench.final)[CLASS], "masking leaves the features as they are"
    assert found["relearn 100"] > 0.5, "a removed row can be learned again"
    assert {k: v for k, v in found.items() if k.startswith("relearn ") and "fresh" not in k} == {
        k.replace(" from a fresh row", ""): v for k, v in found.items() if "fresh" in k
    }
    over_rounds = measures.checkpoints(masked, CLASS)
    assert over_rounds["checkpoints: forgotten max"] == 0.0
    assert over_rounds["checkpoints: drop worst"] >= over_rounds["checkpoints: drop mean"]
    net = bench.model(bench.final)
    h, _ = features(net, in_batches(pick(bench.test, own)))
    quick, _ = features(bench.tail(bench.final), bench.rows(bench.final, pick(bench.test, own)))
    torch.testing.assert_close(quick, h)


def test_tables(tmp_path: Path) -> None:
    zero = dict.fromkeys((*table.RELEARN, *table.FRESH), 0.0)
    results = {
        "FIUn: head": {
            0: {**zero, "probe": 0.7, "relearn 3": 0.2, "retained drop": -0.0001, "threshold": 5.0},
            1: {**zero, "probe": 0.5, "relearn 10": 0.4, "retained drop": 0.03},
        },
        measure.RETRAINED: {0: {**zero, "probe": 0.55}, 1: {**zero, "probe": 0.6, "relearn 10": 0.3}},
    }
    text = table.markdown(results)
    line = next(row for row in text.splitlines() if row.startswith("| FIUn: head | 60.0 / 70.0 |"))
    assert line.split(" | ")[2] == "2.5 / 15.0", "over retrained: 15 and -10 points"
    assert "| FIUn: head | 0.0 | 3.0 |" in text, "no -0.0"
    table.write_csv(results, tmp_path / "m.csv")
    rows = list(csv.reader((tmp_path / "m.csv").open()))
    assert rows[0] == ["class", "variant", "metric", "value"]
    assert ["0", "FIUn: head", "threshold", "5.0"] in rows
    found = {(r[0], r[1]): float(r[3]) for r in rows if r[2] == "relearn over retrained"}
    assert found["0", "FIUn: head"] == pytest.approx(0.2)
    assert found["1", "FIUn: head"] == pytest.approx(0.1)


def test_the_command_writes_table_and_picture_and_measures_once(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dataset", "digits", "--out", str(out), "--classes", str(CLASS)]
    options += ["--pictures", "400", "--clients", "2", "--rounds", "3", "--lr", "0.1"]
    named = ["mask the logit", "FIUn: last block", measure.RETRAINED]
    options += ["--variants", *named]
    monkeypatch.setattr(measure, "RELEARN_SEEDS", (0,))
    assert deeper.main(options) == 0
    assert (out / "deeper.png").read_bytes().startswith(b"\x89PNG")
    first = (out / "measures.csv").read_text()
    assert {row.split(",")[1] for row in first.splitlines()[1:]} == set(named)
    monkeypatch.setattr(measure.Measures, "_measure", None)
    capsys.readouterr()
    assert deeper.main(options) == 0
    assert (out / "measures.csv").read_text() == first
    assert f"class {CLASS}, retrained: forgotten 0.0%" in capsys.readouterr().out
    assert deeper.main([*options, "--lr", "0.2"]) == 1
    assert "another setting" in capsys.readouterr().err
