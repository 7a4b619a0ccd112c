"""Every strategy of ``flwr.server.strategy``, by its name, as a legacy project might configure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.client.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.common import Parameters
from flwr.server import strategy as flower
from flwr.server.strategy import FedAvg, Strategy

NOT_STRATEGIES = ("Strategy", "FedOpt", "FedXgbNnAvg")
"""Other names in the module: two base classes, and a strategy whose replies no Grid can carry."""

Evaluate = Callable[[int, Any, dict[str, Any]], tuple[float, dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """One strategy.

    Attributes:
        make: Makes it, for so many clients, with the first model and a central evaluation.
        kind: What its clients send: values of a ``"model"``, ``"trees"``, or ``"raw"`` values without shape.
        mods: What its clients need.
    """

    make: Callable[[int, Parameters, Evaluate], Strategy]
    kind: str = "model"
    mods: tuple[Any, ...] = ()


def _options(n: int, first: Parameters, evaluate: Evaluate) -> dict[str, Any]:
    return {
        "min_available_clients": n,
        "min_fit_clients": n,
        "min_evaluate_clients": 2,
        "fraction_evaluate": 0.3,
        "initial_parameters": first,
        "evaluate_fn": evaluate,
        "fit_metrics_aggregation_fn": _mean_loss,
    }


def _mean_loss(results: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    return {"train_loss": sum(m["train_loss"] for _, m in results) / len(results)}


def _plain(kind: Callable[..., Strategy], **options: Any) -> Case:
    return Case(lambda n, first, evaluate: kind(**_options(n, first, evaluate), **options))


def _private(kind: Callable[..., Strategy], *mods: Any, **options: Any) -> Case:
    def make(n: int, first: Parameters, evaluate: Evaluate) -> Strategy:
        return kind(FedAvg(**_options(n, first, evaluate)), num_sampled_clients=n, **options)

    return Case(make, mods=mods)


def _trees(kind: Callable[..., Strategy]) -> Case:
    def make(n: int, first: Parameters, evaluate: Evaluate) -> Strategy:
        options = _options(n, Parameters([], ""), evaluate)
        del options["evaluate_fn"], options["fit_metrics_aggregation_fn"]
        return kind(**options)

    return Case(make, "trees")


def _android(n: int, first: Parameters, evaluate: Evaluate) -> Strategy:
    options = _options(n, Parameters([], "numpy.nda"), evaluate)
    del options["evaluate_fn"], options["fit_metrics_aggregation_fn"]
    return flower.FedAvgAndroid(**options)


CASES: dict[str, Case] = {
    "FedAvg": _plain(flower.FedAvg),
    "FaultTolerantFedAvg": _plain(flower.FaultTolerantFedAvg),
    "FedProx": _plain(flower.FedProx, proximal_mu=0.1),
    "FedAvgM": _plain(flower.FedAvgM, server_learning_rate=0.5, server_momentum=0.9),
    "FedAdagrad": _plain(flower.FedAdagrad, eta=0.1, tau=0.01),
    "FedAdam": _plain(flower.FedAdam, eta=0.1, tau=0.01),
    "FedYogi": _plain(flower.FedYogi, eta=0.1, tau=0.01),
    "FedMedian": _plain(flower.FedMedian),
    "FedTrimmedAvg": _plain(flower.FedTrimmedAvg, beta=0.2),
    "Krum": _plain(flower.Krum, num_malicious_clients=1),
    "Bulyan": _plain(flower.Bulyan, num_malicious_clients=1, to_keep=0),
    "QFedAvg": _plain(flower.QFedAvg, q_param=0.2, qffl_learning_rate=0.1),
    "FedXgbBagging": _trees(flower.FedXgbBagging),
    "FedXgbCyclic": _trees(flower.FedXgbCyclic),
    "FedAvgAndroid": Case(_android, "raw"),
    "DifferentialPrivacyServerSideFixedClipping": _private(
        flower.DifferentialPrivacyServerSideFixedClipping, noise_multiplier=0.01, clipping_norm=2.0
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": _private(
        flower.DifferentialPrivacyServerSideAdaptiveClipping, noise_multiplier=0.01, initial_clipping_norm=2.0
    ),
    "DifferentialPrivacyClientSideFixedClipping": _private(
        flower.DifferentialPrivacyClientSideFixedClipping,
        fixedclipping_mod,
        noise_multiplier=0.01,
        clipping_norm=2.0,
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": _private(
        flower.DifferentialPrivacyClientSideAdaptiveClipping,
        adaptiveclipping_mod,
        noise_multiplier=0.01,
        initial_clipping_norm=2.0,
    ),
    "DPFedAvgFixed": _private(flower.DPFedAvgFixed, clip_norm=2.0, noise_multiplier=0.01),
    "DPFedAvgAdaptive": _private(flower.DPFedAvgAdaptive, init_clip_norm=2.0, noise_multiplier=0.01),
}


def unlisted() -> set[str]:
    """Strategies of the installed Flower that `CASES` lacks."""
    return set(flower.__all__) - set(NOT_STRATEGIES) - set(CASES)
