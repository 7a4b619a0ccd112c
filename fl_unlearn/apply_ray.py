"""Preparing checkpoints on a Ray cluster, which Flower's simulation engine brings along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fl_unlearn.apply_file import Job, Prepared, Task, prepare
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.store import CheckpointStore
from fl_unlearn.types import SettingsError

_CHUNKS_A_CORE = 4


def run_on_ray(
    checkpoints: CheckpointStore, tasks: Sequence[Task], workers: int | None = None
) -> Iterator[Prepared]:
    """Prepare checkpoints in Ray tasks; after an error no task is running any more.

    Joins the cluster that this process, or the ``RAY_ADDRESS`` of its environment, is connected to;
    otherwise starts one on this machine.

    Args:
        checkpoints: Where they are: an address that every machine of the cluster sees.
        tasks: What to prepare.
        workers: How many at a time; default the cluster's cores.

    Raises:
        SettingsError: If Ray is not installed, or the address is of this process only.
        UnlearnError: As `apply_file.prepare`.
    """
    try:
        import ray
    except ImportError as e:
        raise SettingsError("executor 'ray' needs Ray: pip install 'flwr[simulation]'") from e
    if checkpoints.address.startswith("memory://"):
        raise SettingsError(f"other processes do not see {checkpoints.address}; use executor 'threads'")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    cores = workers or int(ray.cluster_resources().get("CPU", 1))
    size = max(1, -(-len(tasks) // (cores * _CHUNKS_A_CORE)))
    updates = {u.digest: ray.put(u.to_bytes()) for _, u in tasks}
    remote = ray.remote(num_cpus=1, max_retries=0)(_prepare_chunk)
    waiting: list[Any] = []
    chunks = [tasks[i : i + size] for i in range(0, len(tasks), size)]
    try:
        while chunks or waiting:
            while chunks and len(waiting) < cores:
                jobs = [(job, update.digest) for job, update in chunks.pop(0)]
                needed = {digest: updates[digest] for _, digest in jobs}
                waiting.append(remote.remote(checkpoints.address, jobs, list(needed), *needed.values()))
            done, waiting = ray.wait(waiting)
            for reference in done:
                yield from _result(ray, reference)
    except BaseException:
        if waiting:
            ray.wait(waiting, num_returns=len(waiting))
        raise


def _result(ray: Any, reference: Any) -> list[Prepared]:
    try:
        prepared: list[Prepared] = ray.get(reference)
        return prepared
    except ray.exceptions.RayTaskError as e:
        raise (e.cause or e) from e


def _prepare_chunk(
    address: str, jobs: list[tuple[Job, str]], digests: list[str], *updates: bytes
) -> list[Prepared]:
    checkpoints = CheckpointStore(address)
    known = {d: DampeningUpdate.from_bytes(data) for d, data in zip(digests, updates, strict=True)}
    return [prepare(checkpoints, job, known[digest]) for job, digest in jobs]
