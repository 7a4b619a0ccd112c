"""Which parameters of a model a Fisher is of, and whether it has one at all."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from torch import nn

from fl_unlearn.batches import module_problem
from fl_unlearn.types import FisherError


def find_head(model: nn.Module, name: str | None = None) -> tuple[str, nn.Linear]:
    """The linear layer that gives the logits: the last ``nn.Linear`` registered, or the one named.

    Raises:
        FisherError: If there is none, or ``name`` is not one.
    """
    linear = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
    if not linear:
        raise FisherError(_no_linear(model))
    if name is None:
        name = list(linear)[-1]
    if name not in linear:
        near = difflib.get_close_matches(name, linear, n=1, cutoff=0.4)
        raise FisherError(
            f"head={name!r} is no nn.Linear of the model; there are {', '.join(map(repr, linear))}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return name, linear[name]


def _no_linear(model: nn.Module) -> str:
    """What was looked for in a model without a linear layer, what is there, and what to do."""
    layers = [(n, m) for n, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    found = example = ""
    if layers:
        name, last = layers[-1]
        found = f"; the last of its {len(layers)} layers with parameters is {name!r}, a {type(last).__name__}"
        example = f" such as scope={f'{name}.*' if name else '*'!r}"
    return (
        f"{type(model).__name__} has no nn.Linear to be its head{found}. The head is the last nn.Linear that "
        "the model registers, or the one named by head=...: let one give the logits, or use scope 'all' or "
        f"parameter names{example}"
    )


def resolve_scope(model: nn.Module, scope: str, head: str | None = None) -> list[str]:
    """Names of the trainable parameters in a scope, in the order of ``model.state_dict()``.

    Args:
        model: The model.
        scope: "head", "all", or comma-separated parameter names or glob patterns, such as "fc1.*,fc2.*".
        head: Name of the head, where it is not the last ``nn.Linear``.

    Returns:
        The names; a tied parameter is there under every name it has.

    Raises:
        FisherError: If the scope, or one of its patterns, has nothing trainable.
    """
    names, problems = find_parameters(model, scope, head)
    if problems:
        raise FisherError("; ".join(problems))
    return names


def find_parameters(model: nn.Module, scope: str, head: str | None) -> tuple[list[str], list[str]]:
    """As `resolve_scope`, with what is wrong with the scope as a second result instead of an error."""
    named = dict(model.named_parameters(remove_duplicate=False))
    wanted: set[int] = set()
    problems = []
    if scope.strip() == "head":
        try:
            groups = {"the head": list(find_head(model, head)[1].parameters())}
        except FisherError as e:
            return [], [str(e)]
    elif scope.strip() == "all":
        groups = {"the model": list(named.values())}
    else:
        patterns = [p.strip() for p in scope.split(",") if p.strip()]
        hit = fnmatch.fnmatchcase
        groups = {f"'{p}'": [v for n, v in named.items() if n == p or hit(n, p)] for p in patterns}
        if not patterns:
            problems.append(f"the scope {scope!r} is empty; use 'head', 'all' or names such as 'fc1.*,fc2.*'")
    for what, parameters in groups.items():
        trainable = {id(p) for p in parameters if p.requires_grad}
        wanted |= trainable
        if not parameters and what.startswith("'"):
            near = difflib.get_close_matches(what.strip("'"), list(named), n=4, cutoff=0.3) or list(named)[:4]
            problems.append(f"{what} matches no parameter; the nearest are {', '.join(map(repr, near))}")
        elif not trainable:
            problems.append(f"{what} has no trainable parameter: set requires_grad or choose another scope")
    return [n for n in model.state_dict() if n in named and id(named[n]) in wanted], problems


def check_model(model: nn.Module, names: Sequence[str], also: Sequence[str] = ()) -> None:
    """Refuse a model whose samples would not be independent or repeatable, with every reason at once.

    Args:
        model: The model, in the mode it will be used in.
        names: The parameters in scope.
        also: Reasons found elsewhere, to be listed too.

    Raises:
        FisherError: If there is any; each with its cure.
    """
    reasons = list(also)
    for name, module in model.named_modules():
        problem = module_problem(module)
        if problem:
            reasons.append(f"{type(module).__name__} '{name}' {problem}")
    named = dict(model.named_parameters(remove_duplicate=False))
    for n in names:
        if n not in named:
            reasons.append(f"'{n}' is no parameter of the model")
        elif nn.parameter.is_lazy(named[n]):
            reasons.append(f"parameter '{n}' has no shape yet: run one batch through the model first")
        elif not named[n].is_floating_point():
            reasons.append(f"parameter '{n}' is {named[n].dtype}, not real floating point: leave it out")
    if not names and not also:
        reasons.append("no trainable parameter is in scope: set requires_grad or choose another scope")
    if reasons:
        raise FisherError("the Fisher diagonal cannot be computed:\n" + "\n".join(f"- {r}" for r in reasons))
