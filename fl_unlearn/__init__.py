"""fl-unlearn: make any Flower federation able to forget.

The core (this package without `fl_unlearn.flower`) needs no Flower: Fisher diagonals (`fisher`), their merge
(`merge`, MFIM), the update and its application (`dampen`, `apply`; FIUn), the model inheritance graph
(`lineage`, UMIG), the store of a run (`run_store`) and models beyond federated rounds (`model_graph`).
`fl_unlearn.flower` plugs it into a Flower project.

After X. Liu et al., "Parallel Unlearning in Inherited Model Networks", arXiv 2408.08493.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "UMIG",
    "DampeningUpdate",
    "FisherPart",
    "FisherSums",
    "ForgetRequest",
    "KeepPolicy",
    "ModelGraph",
    "PlannedModel",
    "RunStore",
    "UnlearnError",
    "UnlearnSettings",
    "apply_update",
    "build_update",
    "fisher_diagonal",
    "merge",
]

if TYPE_CHECKING:
    from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
    from fl_unlearn.fisher import FisherSums, fisher_diagonal
    from fl_unlearn.lineage import UMIG
    from fl_unlearn.merge import FisherPart, merge
    from fl_unlearn.model_graph import ModelGraph
    from fl_unlearn.plan import PlannedModel
    from fl_unlearn.run_store import RunStore
    from fl_unlearn.store import KeepPolicy
    from fl_unlearn.types import ForgetRequest, UnlearnError, UnlearnSettings
else:
    _HOMES = {
        "dampen": ("DampeningUpdate", "apply_update", "build_update"),
        "fisher": ("FisherSums", "fisher_diagonal"),
        "lineage": ("UMIG",),
        "merge": ("FisherPart", "merge"),
        "model_graph": ("ModelGraph",),
        "plan": ("PlannedModel",),
        "run_store": ("RunStore",),
        "store": ("KeepPolicy",),
        "types": ("ForgetRequest", "UnlearnError", "UnlearnSettings"),
    }

    def __getattr__(name: str) -> Any:
        """Load a public name when it is first asked for: torch takes seconds, `fl-unlearn --help` none."""
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    class _Package(ModuleType):
        """Keeps `fl_unlearn.merge` the function: importing the module of that name would put itself there."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name in __all__ and isinstance(value, ModuleType):
                value = getattr(value, name)
            super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Package
