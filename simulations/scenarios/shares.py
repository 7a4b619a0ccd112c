"""Shares (placeholder until the real ones land)."""
import numpy as np

def share(scenario, labels, *, partition="even", alpha=0.5, classes_per_owner=2, overlap=None, seed=0):
    rng = np.random.default_rng(seed)
    out = {o: [] for o in scenario.labels}
    for c in np.unique(labels):
        who = [o for o, own in scenario.labels.items() if c in own]
        for o, part in zip(who, np.array_split(rng.permutation(np.flatnonzero(labels == c)), len(who) or 1)):
            out[o].append(part)
    return {o: np.sort(np.concatenate(p)) for o, p in out.items()}
