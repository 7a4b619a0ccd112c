"""What can be wrong with a model that is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fl_unlearn.types import UnlearnError


class ModelError(UnlearnError, ValueError):
    """A model that cannot be built as asked, or weights that do not fit it."""


def unknown(what: str, name: str, known: Iterable[str]) -> ModelError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ModelError(f"unknown {what} {name!r}: the known ones are {', '.join(names)}{hint}")
