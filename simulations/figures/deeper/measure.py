"""What is measured of one variant for one class: on the final model, and over all checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fl_unlearn.membership import membership_inference
from fl_unlearn.probes import STEPS, features, linear_probe, relearning_curve
from fl_unlearn.types import ClassScores
from simulations.quickstart.fl_unlearn_quickstart.data import Pictures

from .bench import Bench, first_of_each_class, in_batches, pick
from .fiun import Operation
from .train import State
from .variants import VARIANTS, is_masked, with_row

RETRAINED = "retrained"
PROBE_SHARE = 4  # a probe is fitted to every fourth training picture
RELEARN_SAMPLES = 67  # of each class: a thirtieth of CIFAR-10's 20,000
RELEARN_SEEDS = (0, 1)
RELEARN_LR, RELEARN_BATCH = 0.05, 32

Values = dict[str, float]


@dataclass
class Measures:
    """Measures variants and keeps the results on disk, a file each; what is there is not measured again."""

    bench: Bench
    out: Path

    def __post_init__(self) -> None:
        b = self.bench
        labels = range(b.classes)
        self._probe_train = first_of_each_class(
            b.train, len(b.train.labels) // PROBE_SHARE // b.classes, labels
        )
        mix = first_of_each_class(b.train, RELEARN_SAMPLES, labels)
        self._mix = (mix.images, mix.labels)
        self._probes: dict[int, dict[int, float]] = {}

    def of(self, name: str, label: int) -> Values:
        """Metric to value for a variant (or `RETRAINED`) and a class; accuracies 0 to 1."""
        path = self.out / f"{name.replace(' ', '-').replace(':', '')}-{label}.json"
        if not path.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            values = self._measure(name, label)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(values, indent=1))
            part.rename(path)
        found: Values = json.loads(path.read_text())
        return found

    def _measure(self, name: str, label: int) -> Values:
        bench = self.bench
        if name == RETRAINED:
            return self.final(bench.retrained(label), label)
        operation = VARIANTS[name](bench, label)
        return {
            **operation.notes,
            **self.final(operation.apply(bench.final), label),
            **self.checkpoints(operation, label),
        }

    def final(self, state: State, label: int) -> Values:
        """All measures of one model, on test pictures."""
        before, after = (
            self.bench.scores(self.bench.final, self.bench.test),
            self.bench.scores(state, self.bench.test),
        )
        return {
            "forgotten": _accuracy(after, label),
            "retained": _retained(after, label),
            "retained drop": _retained(before, label) - _retained(after, label),
            "probe": self.probe(state)[label],
            **self.relearning(state, label),
            **self.membership(state, label),
        }

    def checkpoints(self, operation: Operation, label: int) -> Values:
        """Over the global models of every round, the final one included."""
        forgotten, drops = [], []
        for state in self.bench.rounds:
            before, after = (self.bench.scores(s, self.bench.test) for s in (state, operation.apply(state)))
            forgotten.append(_accuracy(after, label))
            drops.append(_retained(before, label) - _retained(after, label))
        return {
            "checkpoints: forgotten max": max(forgotten),
            "checkpoints: drop mean": fmean(drops),
            "checkpoints: drop worst": max(drops),
        }

    def probe(self, state: State) -> dict[int, float]:
        """Per class, what a linear probe finds in the input of the head."""
        bench = self.bench
        pairs = [features(bench.tail(state), bench.rows(state, p)) for p in (self._probe_train, bench.test)]
        key = hash(pairs[0][0].numpy().tobytes())
        if key not in self._probes:  # variants that only change the head share their features
            self._probes[key] = linear_probe(*pairs[0], *pairs[1])
        return self._probes[key]

    def relearning(self, state: State, label: int) -> Values:
        """Accuracy on the class after a few steps of training on a small balanced set.

        Once from the head as it is, and once from zeros in the class's row: a row that was pushed down, as
        retraining without the class does, takes steps to recover from whatever the features are.
        """
        fresh = with_row(state, label, 0.0)
        own = {} if is_masked(state, label) else {"relearn": state}
        test = in_batches(self._test_pictures(label))
        out: Values = {}
        for name, start in {**own, "relearn from a fresh row": fresh}.items():
            curves = [
                relearning_curve(
                    self.bench.model(start), self._mix, test, lr=RELEARN_LR, batch=RELEARN_BATCH, seed=seed
                )
                for seed in RELEARN_SEEDS
            ]
            for n in STEPS:
                out[f"{name} {n}"] = fmean(_accuracy(curve[n], label) for curve in curves)
        return (
            out if own else {**out, **{f"relearn {n}": out[f"relearn from a fresh row {n}"] for n in STEPS}}
        )

    def membership(self, state: State, label: int) -> Values:
        """Attacks on the class: its training pictures against its test pictures."""
        bench = self.bench
        inside, outside = pick(bench.train, bench.train.labels == label), self._test_pictures(label)
        fpr = max(0.01, 1 / len(outside.labels))  # a small test set cannot tell 1 %
        rows = [bench.rows(state, p) for p in (inside, outside)]
        found = membership_inference(bench.tail(state), *rows, fpr=fpr)
        return {
            f"membership by {name}: {what}": value
            for name, attack in found.items()
            for what, value in (("AUC", attack.auc), (f"TPR at {fpr:.0%} FPR", attack.tpr))
        }

    def _test_pictures(self, label: int) -> Pictures:
        return pick(self.bench.test, self.bench.test.labels == label)


def _accuracy(scores: ClassScores, label: int) -> float:
    return scores.accuracy([label]) or 0.0


def _retained(scores: ClassScores, label: int) -> float:
    return scores.accuracy(without=[label]) or 0.0
