"""Other packages as providers: flash-kmeans, fast-pytorch-kmeans, scikit-learn, kmedoids, scipy.

Every one gets the same tokens and, where it takes a start, the same start. Conversions to its types are not timed.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import Case
from .inputs import Inputs
from .provider import Call, Provider

# The most tokens for peers that take one sample at a time on a CPU, or hold N x N distances.
SAMPLE_TOKENS = 4096


@functools.cache
def why_not_importable(module: str, package: str) -> str | None:
    """Why a package cannot be used; None if it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{package} cannot be imported: {error}"
    return None


class Peer(Provider):
    """A package that may not be installed."""

    package: str
    module: str

    def why_not(self, case: Case, device: torch.device) -> str | None:
        if self.on_cpu and case.n > SAMPLE_TOKENS:
            return f"takes minutes beyond {SAMPLE_TOKENS} tokens"
        return why_not_importable(self.module, self.package)


def _first_centers(inputs: Inputs, x: Tensor) -> Tensor:
    return x.gather(1, inputs.start[..., None].expand(-1, -1, x.shape[2]))


class FlashKMeans(Peer):
    """flash-kmeans: batched K-Means in Triton on CUDA, its chunked torch path elsewhere."""

    name, package, module = "flash-kmeans", "flash-kmeans", "flash_kmeans"
    methods = frozenset({"kmeans"})
    weights = False
    half_centers = True
    # It synchronises with the host after every iteration, to see whether the centers still move.
    capturable = False
    solves = "K-Means with equal weights from the same start, the same iterations and a last assignment"

    def prepare(self, inputs: Inputs) -> Call:
        from flash_kmeans import torch_fallback

        case, x = inputs.case, inputs.x
        if x.device.type == "cuda":
            from flash_kmeans import batch_kmeans_Euclid as solve
            from flash_kmeans.assign_euclid_triton import euclid_assign_triton as assign
        else:
            solve = torch_fallback.batch_kmeans_Euclid_torch_native
            assign = torch_fallback.euclid_assign_torch_native_chunked

        def call() -> Tensor:
            first = _first_centers(inputs, x)
            _, center, _ = solve(x, case.k, max_iters=case.iters, tol=0.0, init_centroids=first)
            return assign(x, center, (x**2).sum(-1))

        return call


class FastPytorchKMeans(Peer):
    """fast-pytorch-kmeans: `MultiKMeans` over the batch."""

    name, package, module = "fast-pytorch-kmeans", "fast-pytorch-kmeans", "fast_pytorch_kmeans"
    methods = frozenset({"kmeans"})
    weights = False
    capturable = False
    solves = "K-Means with equal weights over the batch, from the same start, in float32"

    def prepare(self, inputs: Inputs) -> Call:
        from fast_pytorch_kmeans import MultiKMeans

        # It raises on bfloat16.
        case, x = inputs.case, inputs.x.float()

        def call() -> Tensor:
            # A negative tolerance is never reached: all iterations run, as everywhere else.
            solver = MultiKMeans(case.k, max_iter=case.iters, tol=-1.0)
            solver.fit_predict(x, _first_centers(inputs, x))
            return solver.predict(x)

        return call


def _samples(inputs: Inputs) -> list[np.ndarray]:
    return list(inputs.x.float().cpu().numpy())


def _stacked(labels: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(labels).astype(np.int64))


class ScikitLearn(Peer):
    """scikit-learn's KMeans, one sample at a time."""

    name, package, module = "scikit-learn", "scikit-learn", "sklearn"
    methods = frozenset({"kmeans"})
    on_cpu = True
    capturable = False
    solves = "KMeans(n_init=1, algorithm='lloyd', tol=0) per sample, from the same start, weights included"

    def prepare(self, inputs: Inputs) -> Call:
        import warnings

        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        case, samples, starts = inputs.case, _samples(inputs), inputs.start.cpu().numpy()
        weights = [None] * case.b if inputs.weight is None else list(inputs.weight.cpu().numpy())

        def call() -> Tensor:
            labels = []
            with warnings.catch_warnings():
                # A case ends after its iterations, converged or not.
                warnings.simplefilter("ignore", ConvergenceWarning)
                for x, start, weight in zip(samples, starts, weights, strict=True):
                    solver = KMeans(case.k, init=x[start], n_init=1, max_iter=case.iters, tol=0, algorithm="lloyd")
                    labels.append(solver.fit(x, sample_weight=weight).labels_)
            return _stacked(labels)

        return call


class KMedoids(Peer):
    """The package kmedoids on squared distances, one sample at a time."""

    package, module = "kmedoids", "kmedoids"
    weights = False
    same_path = False
    on_cpu = True
    capturable = False

    def __init__(self, algorithm: str, methods: set[str], solves: str) -> None:
        self.algorithm, self.methods, self.solves = algorithm, frozenset(methods), solves
        self.name = f"kmedoids {algorithm}"

    def prepare(self, inputs: Inputs) -> Call:
        solve = getattr(importlib.import_module("kmedoids"), self.algorithm)
        samples, starts = _samples(inputs), inputs.start.cpu().numpy()
        most = 100 if self.algorithm == "fasterpam" else inputs.case.iters

        def call() -> Tensor:
            labels = []
            for x, start in zip(samples, starts, strict=True):
                norm = np.einsum("ij,ij->i", x, x)
                distance = np.maximum(norm[:, None] + norm - 2 * x @ x.T, 0)
                np.fill_diagonal(distance, 0)
                labels.append(solve(distance, start.copy(), max_iter=most).labels)
            return _stacked(labels)

        return call


def scipy_ward(x: np.ndarray, k: int) -> np.ndarray:
    """Labels [N] of scipy's Ward for one sample."""
    from scipy.cluster.hierarchy import fcluster, linkage

    return fcluster(linkage(x, "ward"), k, "maxclust") - 1


class ScipyWard(Peer):
    """scipy's `linkage(x, "ward")`, one sample at a time or a process for every core."""

    package, module = "scipy", "scipy.cluster.hierarchy"
    methods = frozenset({"ward"})
    weights = False
    on_cpu = True
    capturable = False

    def __init__(self, processes: bool = False) -> None:
        self.processes = processes
        self.name = "scipy Ward, all cores" if processes else "scipy Ward"
        self.solves = "exact Ward per sample" + (", one process a core" if processes else "")

    def why_not(self, case: Case, device: torch.device) -> str | None:
        if self.processes and case.b == 1:
            return "one sample has no use for several processes"
        return super().why_not(case, device)

    def prepare(self, inputs: Inputs) -> Call:
        samples = _samples(inputs)
        solve: Callable[[Any], Any] = functools.partial(scipy_ward, k=inputs.case.k)
        if not self.processes:
            return lambda: _stacked([solve(x) for x in samples])
        pool, workers = _pool(), _cores()
        share = -(-len(samples) // workers)
        return lambda: _stacked(list(pool.map(solve, samples, chunksize=share)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Processes that stay for the whole run; spawned, for a forked one would inherit CUDA."""
    pool = ProcessPoolExecutor(_cores(), mp_context=multiprocessing.get_context("spawn"))
    atexit.register(pool.shutdown)
    return pool


ALTERNATING = KMedoids(
    "alternating", {"kmedoids"}, "alternating K-Medoids with equal weights per sample, from the same start"
)
FASTERPAM = KMedoids(
    "fasterpam",
    {"kmedoids", "ward"},
    "K-Medoids by swaps to a local optimum per sample, from the start: a bound",
)
LARGE = (FlashKMeans(),)
PEERS = (
    *LARGE, FastPytorchKMeans(), ScikitLearn(), ALTERNATING, FASTERPAM, ScipyWard(), ScipyWard(processes=True)
)  # fmt: skip
