"""Every strategy of ``flwr.serverapp.strategy``, by its name, as a project might configure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Result, Strategy

NOT_STRATEGIES = ("Result", "Strategy")
"""Other names in ``flwr.serverapp.strategy.__all__``."""


@dataclass(frozen=True)
class Case:
    """One strategy.

    Attributes:
        make: Makes it, for so many clients.
        mods: What its clients need.
        trees: It trains boosters: recorded, not dampened.
    """

    make: Callable[[int], Strategy]
    mods: tuple[Any, ...] = ()
    trees: bool = False


class OwnLoop(FedAvg):
    """A strategy with a ``start`` of its own."""

    def start(  # type: ignore[override]
        self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, **given: Any
    ) -> Result:
        """Rounds without evaluation at the clients."""
        arrays, result = initial_arrays, Result()
        for r in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(r, arrays, ConfigRecord(), grid))
            made, metrics = self.aggregate_train(r, replies)
            arrays = arrays if made is None else made
            if metrics is not None:
                result.train_metrics_clientapp[r] = metrics
            if evaluate := given.get("evaluate_fn"):
                evaluate(r, arrays)
        result.arrays = arrays
        return result


def _options(n: int) -> dict[str, Any]:
    return {"min_available_nodes": n, "min_train_nodes": n, "min_evaluate_nodes": 2, "fraction_evaluate": 0.3}


def _plain(kind: Callable[..., Strategy], **options: Any) -> Case:
    return Case(lambda n: kind(**_options(n), **options))


def _private(kind: Callable[..., Strategy], *mods: Any, **options: Any) -> Case:
    def make(n: int) -> Strategy:
        return kind(FedAvg(**_options(n)), num_sampled_clients=n, **options)

    return Case(make, mods)


CASES: dict[str, Case] = {
    "FedAvg": _plain(flower.FedAvg),
    "FedProx": _plain(flower.FedProx, proximal_mu=0.1),
    "FedAvgM": _plain(flower.FedAvgM, server_learning_rate=0.5, server_momentum=0.9),
    "FedAdagrad": _plain(flower.FedAdagrad, eta=0.1, tau=0.01),
    "FedAdam": _plain(flower.FedAdam, eta=0.1, tau=0.01),
    "FedYogi": _plain(flower.FedYogi, eta=0.1, tau=0.01),
    "FedMedian": _plain(flower.FedMedian),
    "FedTrimmedAvg": _plain(flower.FedTrimmedAvg, beta=0.2),
    "Krum": _plain(flower.Krum, num_malicious_nodes=1),
    "MultiKrum": _plain(flower.MultiKrum, num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": _plain(flower.Bulyan, num_malicious_nodes=1),
    "QFedAvg": _plain(flower.QFedAvg, client_learning_rate=0.1, q=0.2, train_loss_key="train_loss"),
    "FedXgbBagging": Case(lambda n: flower.FedXgbBagging(**_options(n)), trees=True),
    "FedXgbCyclic": Case(lambda n: flower.FedXgbCyclic(min_available_nodes=n), trees=True),
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
    "own start()": _plain(OwnLoop),
}


def unlisted() -> set[str]:
    """Strategies of the installed Flower that `CASES` lacks."""
    return set(flower.__all__) - set(NOT_STRATEGIES) - set(CASES)
