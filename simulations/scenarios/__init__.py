"""Scenarios (placeholder until the real builders land)."""
from fl_unlearn.plan import PlannedModel as P
from simulations.scenarios.contract import Scenario

def diamond(n, forget, length):
    f = forget or (0,)
    all_, rest = tuple(range(n)), tuple(c for c in range(n) if c not in f)
    return Scenario("diamond", "federated", (
        P("init"), P("d", ["init"], "a"), P("s", ["init"], "b"),
        P("r1", ["d", "s"], "c"), P("r2", ["r1"], "c"),
        P("r3", ["d", "r2"], "e"), P("r4", ["r1", "r2"], "e")),
        {"a": rest, "b": rest, "c": all_, "e": all_}, f)

def several(n, forget, length):
    f = forget or (0, 1, 2, 3)
    rest = tuple(c for c in range(n) if c not in f)
    h = len(f) // 2
    return Scenario("several", "two roots", (
        P("init"), P("r1", ["init"], "a"), P("r2", ["init"], "b"), P("r4", ["r1", "r2"], "c")),
        {"a": f[h:] + rest, "b": f[:h] + rest, "c": tuple(range(n))}, f)

def incremental(n, forget, length):
    f = forget or (0,)
    L = length or 4
    labels = {f"o{i}": tuple(range(n - (L - 1 - i) * max(1, n // 10) if L < 6 else n)) for i in range(L)}
    return Scenario("incremental", "chain", tuple(
        P(f"u{i}", [f"u{i-1}"] if i else [], f"o{i}") for i in range(L)), labels, f)

def parallel(n, forget, length):
    f = forget or (0, 1, 2)
    rest = tuple(c for c in range(n) if c not in f)
    k = len(f) // 3
    return Scenario("parallel", "ddp", (P("init"), *(P(f"u{i}", ["init"], f"w{i}") for i in (1, 2, 3)), P("u0", ["u1", "u2", "u3"])),
        {f"w{i}": f[(i-1)*k:i*k] + rest for i in (1, 2, 3)}, f)

def transfer(n, forget, length):
    f = forget or (0,)
    return Scenario("transfer", "star", (P("u0", [], "o0"), *(P(f"u{i}", ["u0"], f"o{i}", "head") for i in range(1, 5))),
        {f"o{i}": tuple(range(n)) for i in range(5)}, f)

def depth(n, forget, length):
    f = forget or (0,)
    L = length or 50
    return Scenario("depth", "avg of last two", (P("m0", [], "a"), P("m1", ["m0"], "b"), *(P(f"m{i}", [f"m{i-2}", f"m{i-1}"], "abcde"[i % 5]) for i in range(2, L))),
        {o: tuple(range(n)) for o in "abcde"}, f)

SCENARIOS = {"diamond": diamond, "several": several, "incremental": incremental, "parallel": parallel, "transfer": transfer, "depth": depth}

def build(name, num_classes, *, forget=None, length=None, overlap=None):
    return SCENARIOS[name](num_classes, forget, length)
