"""How close is close: one table by dtype and by where it runs, and the regrets that stand in for comparing indices.

Which of two equally good clusters a token goes to depends on rounding; what a choice costs beyond the best does not.

What is promised of the kernels:

- Everywhere, to the last bit: the same call again, a sample alone and in any batch, whatever stood in the buffers. It
  is the same compiled kernel, which adds in the same order. Ward's distances are symmetric: it is compiled without
  contraction.
- In the interpreter to the last bit, on a GPU to the tolerances below: what another compiled kernel makes of the same
  tokens, with other strides, in three launches instead of one, with a mask that keeps everything. The compiler
  contracts to fused multiply-adds and lays out sums by what it knows of the arguments. Labels are the same but for
  ties, whose regret is within the tolerance.
- Against float64 and the torch backend: the tolerances below. Labels, and how many iterations a sample takes, are
  compared as such in the interpreter alone: a GPU divides to 2 ulp, and its products of float32 keep 22 bits of 24.
- Attention in float32 on a GPU: 1e-5 of the largest entry, where the interpreter keeps 3e-6. `ex2.approx` has 2 ulp,
  2^-22; a product of three tf32 products drops 2^-22 of its terms' size, which logits of 8 make 2^-19 = 2e-6 of a
  probability; the values' product adds its own 2^-22, and the gradients, three products deep, have three times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.support.marks import CUDA
from tpkernels import reference


class Tolerance(NamedTuple):
    """value: of tokens and their means, relative to the largest. regret: in shares of the total variance. attention:
    of its output for values near 1, on a GPU relative to the largest if that is more.

    Half types are compared from the same rounded tokens: they compute in float32 and round only what they return.
    Probabilities are rounded to a half type before they meet the values, as the values are.
    """

    value: float
    regret: float
    attention: float


INTERPRETER = {
    torch.float64: Tolerance(1e-12, 1e-12, 1e-12),
    torch.float32: Tolerance(1e-5, 1e-5, 3e-6),
    torch.float16: Tolerance(1e-3, 1e-5, 2e-3),
    torch.bfloat16: Tolerance(8e-3, 1e-5, 1.6e-2),
}
GPU = INTERPRETER | {torch.float32: Tolerance(1e-5, 1e-5, 1e-5)}
TOLERANCES = GPU if CUDA else INTERPRETER


def total_variance(x: Tensor, weight: Tensor | None = None) -> float:
    """`sum_i w_i ||x_i - mu||^2` of one sample [N, D], with weights over their largest."""
    if not len(x):
        return 0.0
    x = x.double()
    w = x.new_ones(len(x)) if weight is None else relative(weight)
    return float(reference.objective(x, (w[:, None] * x).sum(0, keepdim=True) / w.sum(), w))


def relative(weight: Tensor) -> Tensor:
    """Weights [N] over their largest; ones where all are 0."""
    weight = weight.double()
    return weight / weight.max() if len(weight) and weight.max() > 0 else torch.ones_like(weight)


def regret_limit(x: Tensor, weight: Tensor | None = None) -> float:
    """The largest regret allowed for a sample [N, D], a share of its total variance.

    Equal tokens have none; their coordinates' own rounding is allowed.
    """
    share = TOLERANCES[x.dtype].regret
    return share * total_variance(x, weight) + (share * 1e-2) ** 2 * float(x.double().square().sum())


def assignment_regret(x: Tensor, centers: Tensor, label: Tensor) -> float:
    """By how much a token of x [N, D] is farther from its center of [K, D] than from the nearest, squared, at most."""
    sqdist = reference.pairwise_sqdist(x, centers.double())
    return float((sqdist.gather(1, label[:, None]).squeeze(1) - sqdist.amin(1)).max())


def medoid_regret(x: Tensor, label: Tensor, medoids: Tensor, weight: Tensor | None = None) -> float:
    """By how much the medoids, one of each cluster of label [N], cost more than the best members, at most.

    In any order: a medoid is a member, which names its cluster.
    """
    weight = None if weight is None else relative(weight)
    owner = label[medoids].tolist()
    assert sorted(owner) == sorted(set(label.tolist())), "every cluster has one medoid, a member of it"
    worst = 0.0
    for slot, medoid in zip(owner, medoids.tolist(), strict=True):
        members = (label == slot).nonzero().flatten().tolist()
        costs = {i: reference.medoid_cost(x, members, i, weight) for i in members}
        worst = max(worst, costs[medoid] - min(costs.values()))
    return worst


def assert_values(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None, of: Tensor | None = None) -> None:
    """Two tensors agree to the tolerance of found's dtype (or of dtype), relative to the largest expected entry.

    Args:
        of: what they are means of: those that cancel are as exact as their members, not as themselves.
    """
    assert found.shape == expected.shape
    expected = expected.detach().double()
    largest = expected if of is None else of.nan_to_num().double()
    scale = float(largest.abs().max()) if largest.numel() else 0.0
    atol = TOLERANCES[dtype or found.dtype].value * scale
    torch.testing.assert_close(found.detach().double(), expected, rtol=0, atol=atol)


def scatter(x: Tensor, label: Tensor, weight: Tensor | None = None) -> float:
    """`sum_i w_i ||x_i - mu_{a_i}||^2` of one sample [N, D] and labels [N], -1 left out, weights over their largest."""
    there = label >= 0
    x, label = x[there].double(), label[there]
    w = x.new_ones(len(x)) if weight is None else relative(weight)[there]
    if not len(x):
        return 0.0
    centers = reference.cluster_mean(x, label, int(label.max()) + 1, w)
    return float(reference.objective(x, centers, w, label))


def assert_same_labels(
    found: Tensor,
    expected: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    tie: Callable[[int], bool] | None = None,
) -> list[int]:
    """Labels [B, N] of two ways to cluster x [B, N, D]: the same; on a GPU a tie may settle otherwise.

    Args:
        tie: whether a tie explains why a sample's labels differ and cost something else: see `explained_by_a_tie`.

    Returns:
        the samples with the same labels.
    """
    if not CUDA:
        assert torch.equal(found, expected)
    same = [b for b in range(len(found)) if torch.equal(found[b], expected[b])]
    for b in set(range(len(found))) - set(same):
        w = None if weight is None else weight[b].cpu()
        costs = [scatter(x[b].cpu(), label[b].cpu(), w) for label in (found, expected)]
        valid = x[b].cpu()[expected[b].cpu() >= 0]
        assert abs(costs[0] - costs[1]) <= regret_limit(valid) or (tie is not None and tie(b)), f"sample {b}"
    return same


def explained_by_a_tie(
    method: str, x: Tensor, k: int, weight: Tensor | None = None, init: str | Tensor = "ward", max_iter: int = 5
) -> bool:
    """Whether the reference itself ends elsewhere when one sample's tokens and weights change by a millionth."""
    call = getattr(reference, method)
    options = {} if method == "ward" else {"init": init, "max_iter": max_iter}
    expected = call(x, k, weight, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        noise = 1e-6 * x.std() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        w = weight
        if weight is not None:
            w = weight * (1 + 1e-6 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        if not torch.equal(call(x + noise, k, w, **options).assignment, expected.assignment):
            return True
    return False
