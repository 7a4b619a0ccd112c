"""Diagonal Fisher information of a classifier: of its head in closed form, of every layer in one pass.

`diagonal` is the front door. Behind it `computation` takes each batch by one of three ways: `head` (closed
form, no backward pass), `onepass` (one forward and one backward pass for all parameters) and `fallback`
(torch.func). `record` sees what a forward pass does with parameters, `functions` says which `uses` that
makes, and `contract` and `small` hold their formulas. `ledger` keeps a client's sums on its disk.
"""

from .diagonal import FisherCollector, fisher_diagonal
from .scope import check_model, find_head, resolve_scope
from .sums import FisherSums

__all__ = [
    "FisherCollector",
    "FisherSums",
    "check_model",
    "find_head",
    "fisher_diagonal",
    "resolve_scope",
]
