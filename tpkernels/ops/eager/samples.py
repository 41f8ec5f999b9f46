"""A batch made ready for clustering, and the rules that every method shares: masks, bad numbers, numbering."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import compute_dtype, may_look
from ..problem import Samples


def prepare(
    x: Tensor, weight: Tensor | None, mask: Tensor | None, k: int, counts: Tensor | None = None, *, cuts: bool = False,
    centers: bool = True, looks: bool | None = None,
) -> Samples:  # fmt: skip
    """Centers every sample, unless told otherwise, and takes out what must not be computed with.

    Subtracting the mean of the valid tokens changes no distance and keeps a common offset from cancelling digits.
    Weights are divided by the sample's largest, which changes no assignment and keeps sums of 1e30 finite. Masked
    tokens and samples with NaN or Inf become zeros; `finite` names the latter. With `looks` the values decide whether
    there is anything to take out; None looks where that waits for no device.

    Args:
        counts: clusters of each sample [B], at most k; k in all where None.
        cuts: clusters of a sample of no more tokens than those may merge too.
    """
    looks = may_look(x) if looks is None else looks
    b, n, _ = x.shape
    x = x.to(compute_dtype(x))
    if mask is None:
        count = torch.full((b,), n, dtype=torch.int64, device=x.device)
    else:
        count = mask.sum(1)
        x = x.masked_fill(~mask[..., None], 0)
    if centers:
        offset = x.sum(1, keepdim=True) / (max(n, 1) if mask is None else count.clamp(min=1)[:, None, None])
        x = x - offset if mask is None else (x - offset).masked_fill(~mask[..., None], 0)
    else:
        offset = x.new_zeros(b, 1, x.shape[2])
    # One squared norm tells NaN, Inf and values whose distances would overflow.
    finite = torch.linalg.vector_norm(x, dim=(1, 2)).square().isfinite()
    scale = x.new_ones(b)
    if weight is not None:
        weight, scale, ok = _relative(weight.to(x.dtype), mask)
        finite = finite & ok
    if not (looks and bool(finite.all())):
        weight = None if weight is None else weight.masked_fill(~finite[:, None], 1)
        x = x.masked_fill(~finite[:, None, None], 0)
    return _samples(x, weight, mask, count, (k, counts, cuts), finite, offset, scale, looks)


def prepare_uncentered(
    x: Tensor, weight: Tensor | None, mask: Tensor | None, k: int, counts: Tensor | None = None
) -> Samples:
    """`prepare` for methods that read weights and places, not tokens: those stay as they came, and are read once."""
    b, n, d = x.shape
    dtype = compute_dtype(x)
    there = x if mask is None else x.masked_fill(~mask[..., None], 0)
    finite = torch.ones(b, dtype=torch.bool, device=x.device)
    if n and d:
        # The largest absolute value is finite where all are.
        finite = torch.linalg.vector_norm(there, torch.inf, dim=(1, 2)).isfinite()
    count = torch.full((b,), n, dtype=torch.int64, device=x.device) if mask is None else mask.sum(1)
    scale = x.new_ones(b, dtype=dtype)
    if weight is not None:
        weight, scale, ok = _relative(weight.to(dtype), mask)
        finite = finite & ok
        weight = weight.masked_fill(~finite[:, None], 1)
    offset = x.new_zeros(b, 1, d, dtype=dtype)
    return _samples(x, weight, mask, count, (k, counts, False), finite, offset, scale, may_look(x))


def _samples(
    x: Tensor, weight: Tensor | None, mask: Tensor | None, count: Tensor, wanted: tuple[int, Tensor | None, bool],
    finite: Tensor, offset: Tensor, scale: Tensor, looks: bool,
) -> Samples:  # fmt: skip
    k, counts, cuts = wanted
    clusters = count.clamp(max=k) if counts is None else torch.minimum(count, counts.clamp(1, max(k, 1)))
    plain = ~finite | (count <= (1 if cuts else clusters))
    known = looks and not bool(plain.any())
    return Samples(x, weight, mask, count, clusters, finite, None if known else plain, offset, scale)


def _relative(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, N] over their sample's largest, 0 where masked; the largest [B], or 1; which are finite [B]."""
    weight = weight if mask is None else weight.masked_fill(~mask, 0)
    finite = weight.isfinite().all(1)
    scale = weight.amax(1) if weight.shape[1] else weight.new_ones(len(weight))
    scale = torch.where(scale > 0, scale, 1)
    return weight / scale[:, None], scale, finite


def split_in_order(samples: Samples) -> Tensor:
    """Labels [B, N] that cut every sample's valid tokens into k runs: `rank * k // n_valid`; -1 where masked."""
    return samples.only_valid(samples.rank * samples.k[:, None] // samples.n_valid.clamp(min=1)[:, None])


def override_plain(samples: Samples, label: Tensor) -> Tensor:
    """Overrides labels where clustering has no say: masked tokens, bad samples, samples of at most k tokens."""
    if samples.plain is not None:
        label = torch.where(samples.plain[:, None], split_in_order(samples), label)
    return samples.only_valid(label)
