"""The Flower plug-in: a strategy wrapper for the server, handlers for the clients."""

from fl_unlearn.flower.client import attach, forgotten_classes, unlearning_mod
from fl_unlearn.flower.forgotten import forgotten_samples
from fl_unlearn.flower.own_copies import OwnCopies
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.flower.server import UnlearningStrategy
from fl_unlearn.flower.session import forget

__all__ = [
    "ForgetResult",
    "OwnCopies",
    "UnlearningStrategy",
    "attach",
    "forget",
    "forgotten_classes",
    "forgotten_samples",
    "unlearning_mod",
]
