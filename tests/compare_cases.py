"""Comparisons with invented numbers, for tests of tables and pages; nothing in them was measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fl_unlearn.metrics.contract import Column, Good, Unit
from fl_unlearn.types import ForgetRequest
from simulations.compare.results import CHECKPOINT, COST, ORIGINAL, RETRAIN, Comparison, Graph, Row

INVENTED = "invented for tests, not measured"

STRATEGIES = (
    ORIGINAL,
    RETRAIN,
    *("fiun", "fiun-deep", "fiun-paper", "mask", "fine-tune", "federaser", "gradient-ascent"),
    *("gradient-ascent-paper", "not", "fedquit", "unsir", "incompetent-teacher", "distill", "fedunlearn-pe"),
    "<script>alert(1)</script>",
)

_KEYS: tuple[tuple[str, str, Unit], ...] = (
    ("forget-accuracy", "forgotten: accuracy", "%"),
    ("retain-accuracy", "retained: accuracy", "%"),
    ("held-forget-accuracy", "held-out, forgotten: accuracy", "%"),
    ("held-retain-accuracy", "held-out, retained: accuracy", "%"),
    ("forget-loss", "forgotten: loss", "nats"),
    ("retain-loss", "retained: loss", "nats"),
    ("mia-loss-auc", "membership by loss: AUC", "%"),
    ("mia-loss-tpr", "membership by loss: TPR at 1 % FPR", "%"),
    ("mia-entropy-auc", "membership by entropy: AUC", "%"),
    ("mia-entropy-tpr", "membership by entropy: TPR at 1 % FPR", "%"),
    ("mia-svc-accuracy", "membership by SVC", "%"),
    ("lira-auc", "U-LiRA: AUC", "%"),
    ("probe-forget", "linear probe", "%"),
    ("relearn-steps", "relearning", "steps"),
    ("backdoor", "backdoor", "%"),
    ("zrf", "ZRF", ""),
    ("activation-distance", "activation distance", ""),
    ("distance", "parameter distance", ""),
    ("distance-conv1", "parameter distance: conv1", ""),
    ("distance-conv2", "parameter distance: conv2", ""),
    ("distance-fc", "parameter distance: fc", ""),
    ("gap-forget", "gap: forgotten", "%"),
    ("gap-retain", "gap: retained", "%"),
    ("tug-of-war", "tug of war", ""),
    ("something-else", "something else", "bits"),
)


def column(key: str, good: Good = "retrained", unit: Unit = "%", title: str = "") -> Column:
    """A column that says what its key says."""
    return Column(key, title or key, unit, good, f"What {key} means.")


def comparison(
    values: dict[str, dict[str, Sequence[float | None]]],
    columns: Sequence[Column],
    refused: dict[str, str] | None = None,
    why: str = "too few samples",
    request: ForgetRequest | None = None,
) -> Comparison:
    """A comparison by hand: strategy to key to one value per seed."""
    rows = [
        Row(strategy, seed, key, value, 0 if value is None else 20, why if value is None else "")
        for strategy, by_key in values.items()
        for key, by_seed in by_key.items()
        for seed, value in enumerate(by_seed)
    ]
    request = request or ForgetRequest((0,))
    papers = {s: f"paper of {s}" for s in values}
    return Comparison(
        "by hand",
        {"dataset": INVENTED, "clients": 3},
        request.to_json(),
        tuple(columns),
        papers,
        tuple(rows),
        refused=refused or {},
    )


def large(seeds: int = 3, strategies: Sequence[str] = STRATEGIES, classes: int = 10) -> Comparison:
    """About 17 strategies and 30 columns, with values that are absent, a refusal, and a name in HTML."""
    draw = random.Random(0)
    columns = (*(column(k, "retrained", u, t) for k, t, u in _KEYS), *CHECKPOINT, *COST)
    rows = [r for s in strategies for seed in range(seeds) for r in _rows(draw, s, seed, columns, classes)]
    return Comparison(
        name=f"{INVENTED}: {len(strategies)} strategies",
        setting={"dataset": INVENTED, "clients": 5, "rounds": 4, "backdoor-client": ""},
        request=ForgetRequest((3,)).to_json(),
        columns=columns,
        strategies={s: f"A paper on {s}, arXiv 0000.00000" for s in strategies},
        rows=tuple(rows),
        facts={s: {i: {"threshold": 7.0, "lambda": 1} for i in range(seeds)} for s in strategies[2:4]},
        refused={"federaser": "it needs the clients' updates of every round, which this run did not keep"}
        if "federaser" in strategies
        else {},
        graph=graph(),
    )


def _rows(draw: random.Random, s: str, seed: int, columns: Sequence[Column], classes: int) -> list[Row]:
    if s == "federaser":
        return []
    out = []
    for c in columns:
        why = ""
        if c.key == "lira-auc":
            why = "no shadow models within the budget"
        elif c.key == "backdoor":
            why = "no trigger was planted"
        elif s == "distill" and c.key == "relearn-steps" and seed:
            why = "the original accuracy did not come back within 200 steps"
        elif s == ORIGINAL and c in COST:
            why = "nothing was done"
        value = None if why else _invented(draw, s, c)
        out.append(Row(s, seed, c.key, value, 0 if value is None or c in COST else 174 + seed, why))
    for label in range(classes):
        level = 0.62 + 0.3 * ((7 * label) % 10) / 10
        value = draw.uniform(0.0, 0.02) if label == 3 and s != ORIGINAL else level + draw.uniform(-0.05, 0.05)
        out.append(Row(s, seed, f"class-{label}", value, 100))
    return out


def _invented(draw: random.Random, s: str, c: Column) -> float:
    if c.key in ("client-seconds", "wall-seconds"):
        return draw.uniform(100, 120) if s == RETRAIN else draw.uniform(0.001, 40)
    if c.key.startswith("bytes"):
        return float(draw.randrange(0, 80_000_000))
    if c.key in ("rounds", "relearn-steps"):
        return float(draw.randrange(0, 20))
    if c.key.endswith("forget-accuracy") and s != ORIGINAL:
        return draw.choice((0.0, draw.uniform(0, 0.01), draw.uniform(0, 0.3)))
    if c.key.endswith("accuracy"):
        return draw.uniform(0.93, 0.99)
    if c.unit == "nats":
        return 10_123.4 if s == "mask" and "forget" in c.key else draw.uniform(0.01, 3)
    return draw.uniform(0.45, 0.95)


def graph(rounds: int = 4, clients: int = 3) -> Graph:
    """A run in which client 1 holds what is to be forgotten."""
    nodes = {"initial": ("initial", 0, "", False)}
    edges = []
    last = "initial"
    for r in range(1, rounds + 1):
        made = [f"r{r}-client-{k}" for k in range(clients)]
        for k, name in enumerate(made):
            nodes[name] = ("client-update", r, str(k), k == 1 or r > 1)
            edges.append((last, name))
        nodes[f"r{r}-global"] = ("aggregate", r, "", True)
        edges += [(name, f"r{r}-global") for name in made]
        last = f"r{r}-global"
    return Graph(nodes, tuple(edges))
