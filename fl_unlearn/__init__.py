"""fl-unlearn: make any Flower federation able to forget.

The core (this package without `fl_unlearn.flower`) needs no Flower: Fisher diagonals (`fisher`), their merge
(`merge`, MFIM), the update and its application (`dampen`, `apply`; FIUn), the model inheritance graph
(`lineage`, UMIG) and the store of a run (`run_store`). `fl_unlearn.flower` plugs it into a Flower project.

After X. Liu et al., "Parallel Unlearning in Inherited Model Networks", arXiv 2408.08493.
"""

from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.lineage import UMIG
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, UnlearnError, UnlearnSettings

__version__ = "0.1.0"

__all__ = [
    "UMIG",
    "DampeningUpdate",
    "FisherPart",
    "FisherSums",
    "ForgetRequest",
    "KeepPolicy",
    "RunStore",
    "UnlearnError",
    "UnlearnSettings",
    "apply_update",
    "build_update",
    "fisher_diagonal",
    "merge",
]
