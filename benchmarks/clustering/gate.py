"""The check before every timing: labels in range, and an objective that is the reference's.

The objective is recomputed in float64 from the labels alone, never taken from a provider:
`L = sum_i w_i ||x_i - c_{a_i}||^2` with c the weighted mean of the cluster (Ward, K-Means) or the member nearest to it
(K-Medoids). It is compared on a few samples of the batch with `tpkernels.reference` where its loops can finish, with
scipy for Ward, and beyond that with the float64 torch backend, which is itself compared with the reference on a cut of
the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import tpkernels
from tpkernels import reference

from .cases import Case
from .inputs import Inputs
from .peers import scipy_ward, why_not_importable

# Elements of the reference's [N, K, D] differences; its Ward walks N x N pairs in Python.
REFERENCE_ELEMENTS = 1 << 24
REFERENCE_WARD_TOKENS = 128
SAMPLES = 2
WARD_TOLERANCE = 1e-4
# From the same start two roundings can differ at a near tie; with centers in half precision they do more often.
LLOYD_TOLERANCE = 2e-3
HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Verdict:
    """wrong: what is wrong with the labels, None where they pass; objective: mean of the samples checked (None where
    labels are no clustering); ratio: to the reference's."""

    wrong: str | None
    objective: float | None = None
    ratio: float | None = None


def objective(method: str, x: Tensor, weight: Tensor | None, label: Tensor, k: int) -> float:
    """L of one sample x [N, D] from its labels [N], in float64; an equal-weight cluster where weights sum to 0."""
    x, label = x.double(), label.long()
    x = x - x.mean(0)
    w = x.new_ones(len(x)) if weight is None else weight.double()
    mass = x.new_zeros(k).index_add_(0, label, w)
    inner = torch.where(mass[label] > 0, w, 1.0)
    mass = x.new_zeros(k).index_add_(0, label, inner).clamp_min(torch.finfo(torch.float64).tiny)
    mean = x.new_zeros(k, x.shape[1]).index_add_(0, label, inner[:, None] * x) / mass[:, None]
    apart = (x - mean[label]).square().sum(1)
    if method != "kmedoids":
        return float((w * apart).sum())
    least = x.new_full((k,), torch.inf).scatter_reduce_(0, label, apart, "amin")
    nearest = torch.where(apart == least[label], torch.arange(len(x), device=x.device), len(x))
    medoid = nearest.new_full((k,), len(x)).scatter_reduce_(0, label, nearest, "amin")
    return float((w * (x - x[medoid[label]]).square().sum(1)).sum())


def not_a_clustering(label: Tensor, case: Case) -> str | None:
    """Why labels are no clustering of the case; None if they are."""
    if tuple(label.shape) != (case.b, case.n):
        return f"labels: expected the shape {(case.b, case.n)}, got {tuple(label.shape)}"
    if label.dtype.is_floating_point or label.dtype == torch.bool:
        return f"labels: expected integers, got {label.dtype}"
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= case.k:
        return f"labels: expected 0 to {case.k - 1}, got {low} to {high}"
    return None


class Gate:
    """The check of one case; the reference's results are computed once for all providers."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.case = inputs, inputs.case
        self.samples = sorted({0, self.case.b - 1})[:SAMPLES]
        self._expected: dict[bool, list[float]] = {}

    def check(self, label: Tensor, *, weighted: bool, same_path: bool, half_centers: bool) -> Verdict:
        """A verdict on labels [B, N].

        Args:
            weighted: whether they come from a clustering that counts the case's weights.
            same_path: whether the objective has to be the reference's, not merely reported.
            half_centers: whether centers were rounded to the tokens' dtype.
        """
        wrong = not_a_clustering(label, self.case)
        if wrong is not None:
            return Verdict(wrong)
        expected = self.expected(weighted)
        found = [self._objective(i, label[i], weighted) for i in self.samples]
        ratios = [mine / its if its > 0 else float(mine == its) for mine, its in zip(found, expected, strict=True)]
        mean, ratio = sum(found) / len(found), sum(found) / max(sum(expected), 1e-300)
        tolerance = self.tolerance(half_centers)
        worst = max(ratios, key=lambda r: abs(r - 1))
        if same_path and abs(worst - 1) > tolerance:
            return Verdict(
                f"objective: expected the reference's within {tolerance:g}, got {worst:.6f} of it", mean, ratio
            )
        return Verdict(None, mean, ratio)

    def tolerance(self, half_centers: bool) -> float:
        """The largest relative difference allowed to a provider that takes the reference's steps."""
        if self.case.method == "ward":
            return WARD_TOLERANCE
        return HALF_TOLERANCE if half_centers and self.case.dtype in ("bfloat16", "float16") else LLOYD_TOLERANCE

    def expected(self, weighted: bool) -> list[float]:
        """The reference's objective of each sample that is checked."""
        if weighted not in self._expected:
            self._expected[weighted] = [
                self._objective(i, self._reference(i, weighted), weighted) for i in self.samples
            ]
        return self._expected[weighted]

    def _objective(self, i: int, label: Tensor, weighted: bool) -> float:
        weight = self.inputs.weight if weighted else None
        x = self.inputs.x[i]
        return objective(self.case.method, x, None if weight is None else weight[i], label.to(x.device), self.case.k)

    def _reference(self, i: int, weighted: bool) -> Tensor:
        weight = self.inputs.weight if weighted else None
        return reference_labels(
            self.case, self.inputs.x[i], None if weight is None else weight[i], self.inputs.start[i]
        )


def reference_labels(case: Case, x: Tensor, weight: Tensor | None, start: Tensor) -> Tensor:
    """Labels [N] of one sample by the slowest, most trusted method that can finish.

    Raises:
        RuntimeError: the torch backend, used where the reference cannot finish, disagrees with it on a cut.
    """
    if case.method == "ward" and weight is None and why_not_importable("scipy.cluster.hierarchy", "scipy") is None:
        return torch.from_numpy(scipy_ward(x.double().cpu().numpy(), case.k)).long()
    if _can_finish(case):
        return _loops(case, x.cpu(), None if weight is None else weight.cpu(), start.cpu())
    _hold_twin_to_reference(case, x, weight)
    return _twin(case, x, weight, start)


def _can_finish(case: Case) -> bool:
    if "ward" in (case.method, case.init) and case.n > REFERENCE_WARD_TOKENS:
        return False
    return case.n * case.k * case.d <= REFERENCE_ELEMENTS


def _loops(case: Case, x: Tensor, weight: Tensor | None, start: Tensor) -> Tensor:
    if case.method == "ward":
        return reference.ward(x, case.k, weight).assignment
    solve = reference.kmedoids if case.method == "kmedoids" else reference.kmeans
    init = "ward" if case.init == "ward" else start.tolist()
    return solve(x, case.k, weight, init=init, max_iter=case.iters).assignment


def _twin(case: Case, x: Tensor, weight: Tensor | None, start: Tensor) -> Tensor:
    x, weight = x.double()[None], None if weight is None else weight.double()[None]
    if case.method == "ward":
        return tpkernels.ward(x, case.k, weight, backend="torch").assignment[0]
    solve = tpkernels.kmedoids if case.method == "kmedoids" else tpkernels.kmeans
    init = "ward" if case.init == "ward" else start[None]
    return solve(x, case.k, weight, init=init, max_iter=case.iters, backend="torch").assignment[0]


def _hold_twin_to_reference(case: Case, x: Tensor, weight: Tensor | None) -> None:
    """Raises RuntimeError where the float64 twin and the reference differ on the first tokens and channels of x."""
    n, d = min(case.n, REFERENCE_WARD_TOKENS), min(case.d, 64)
    small = replace(case, b=1, n=n, d=d, k=max(1, min(n // 2, case.k * n // case.n)))
    # In float64, so that both get the same bits.
    x, weight = x[:n, :d].double(), None if weight is None else weight[:n]
    start = torch.arange(small.k, device=x.device) * n // small.k
    twin = _twin(small, x, weight, start)
    slow = _loops(small, x.cpu(), None if weight is None else weight.cpu(), start.cpu()).to(x.device)
    mine, its = (objective(case.method, x, weight, label, small.k) for label in (twin, slow))
    if abs(mine - its) > 1e-6 * abs(its):
        raise RuntimeError(f"the torch backend's objective on a cut of {case.name} is {mine}, the reference's {its}")
