"""A batch made ready for clustering, and the rules that every method shares: masks, bad numbers, numbering."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..cpu import jit
from ..cpu import samples as cpu_samples
from ..precision import compute_dtype


class Samples(NamedTuple):
    """Tokens and weights that are safe to compute with.

    Shapes: x [B, N, D], weight [B, N] or None (equal weights), valid [B, N] bool or None (all valid),
    rank [B, N] int64 (position among the valid tokens), n_valid [B] int64 (valid tokens), k [B] int64 (clusters of each
    sample), finite [B] bool, offset [B, 1, D] (what was subtracted from the tokens), scale
    [B] (what the weights were divided by).
    """

    x: Tensor
    weight: Tensor | None
    valid: Tensor | None
    rank: Tensor
    n_valid: Tensor
    k: Tensor
    finite: Tensor
    offset: Tensor
    scale: Tensor

    @property
    def plain(self) -> Tensor:
        """Samples [B] that are not clustered: bad numbers, or no more tokens than clusters."""
        return ~self.finite | (self.n_valid <= self.k)

    def part(self, start: int, stop: int) -> Samples:
        """Samples start..stop-1 of the batch."""
        return Samples._make(None if field is None else field[start:stop] for field in self)


def prepare(
    x: Tensor, weight: Tensor | None, mask: Tensor | None, k: int, *, looks: bool = False, centred: bool = True
) -> Samples:
    """Centres every sample and takes out what must not be computed with.

    Subtracting the mean of the valid tokens changes no distance and keeps a common offset from cancelling digits.
    Weights are divided by the sample's largest, which changes no assignment and keeps sums of 1e30 finite. Masked
    tokens and samples with NaN or Inf become zeros; `finite` names the latter. With `looks` the values decide whether
    there is anything to take out. Without `centred` the tokens stay as they are, for what only wants to know whether
    they are finite.
    """
    b, n, _ = x.shape
    if not centred:
        return _as_they_are(x, weight, mask, k)
    x = x.to(compute_dtype(x))
    if jit.takes(x):
        x, weight, count, finite, offset, scale = cpu_samples.centre(x, weight, mask)
        rank = torch.arange(n).expand(b, n) if mask is None else mask.cumsum(1) - 1
        return Samples(x, weight, mask, rank, count, count.clamp(max=k), finite, offset, scale)
    if mask is None:
        rank = torch.arange(n, device=x.device).expand(b, n)
        count = torch.full((b,), n, dtype=torch.int64, device=x.device)
        offset = x.sum(1, keepdim=True) / max(n, 1)
        x = x - offset
    else:
        rank = mask.cumsum(1) - 1
        count = mask.sum(1)
        x = x.masked_fill(~mask[..., None], 0)
        offset = x.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]
        x = (x - offset).masked_fill(~mask[..., None], 0)
    # One squared norm tells NaN, Inf and values whose distances would overflow.
    finite = torch.linalg.vector_norm(x, dim=(1, 2)).square().isfinite()
    scale = x.new_ones(b)
    if weight is not None:
        weight, scale, ok = _relative(weight.to(x.dtype), mask)
        finite = finite & ok
    if not (looks and bool(finite.all())):
        weight = None if weight is None else weight.masked_fill(~finite[:, None], 1)
        x = x.masked_fill(~finite[:, None, None], 0)
    return Samples(x, weight, mask, rank, count, count.clamp(max=k), finite, offset, scale)


def _as_they_are(x: Tensor, weight: Tensor | None, mask: Tensor | None, k: int) -> Samples:
    """`prepare` for methods that read weights and places, not tokens: those are looked through once, not written."""
    b, n, d = x.shape
    dtype = compute_dtype(x)
    there = x if mask is None else x.masked_fill(~mask[..., None], 0)
    finite = torch.ones(b, dtype=torch.bool, device=x.device)
    if n and d:
        # The largest absolute value is finite where all are.
        finite = torch.linalg.vector_norm(there, torch.inf, dim=(1, 2)).isfinite()
    rank = torch.arange(n, device=x.device).expand(b, n) if mask is None else mask.cumsum(1) - 1
    count = torch.full((b,), n, dtype=torch.int64, device=x.device) if mask is None else mask.sum(1)
    scale = x.new_ones(b, dtype=dtype)
    if weight is not None:
        weight, scale, ok = _relative(weight.to(dtype), mask)
        finite = finite & ok
        weight = weight.masked_fill(~finite[:, None], 1)
    return Samples(x, weight, mask, rank, count, count.clamp(max=k), finite, x.new_zeros(b, 1, d, dtype=dtype), scale)


def _relative(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, N] over their sample's largest, 0 where masked; the largest [B], or 1; which are finite [B]."""
    weight = weight if mask is None else weight.masked_fill(~mask, 0)
    finite = weight.isfinite().all(1)
    scale = weight.amax(1) if weight.shape[1] else weight.new_ones(len(weight))
    scale = torch.where(scale > 0, scale, 1)
    return weight / scale[:, None], scale, finite


def split_in_order(samples: Samples) -> Tensor:
    """Labels [B, N] that cut every sample's valid tokens into k runs: `rank * k // n_valid`; -1 where masked."""
    return only_valid(samples, samples.rank * samples.k[:, None] // samples.n_valid.clamp(min=1)[:, None])


def settle(samples: Samples, label: Tensor) -> Tensor:
    """Overrides labels where clustering has no say: masked tokens, bad samples, samples of at most k tokens."""
    label = torch.where(samples.plain[:, None], split_in_order(samples), label)
    return only_valid(samples, label)


def segment_ids(label: Tensor, k: int) -> Tensor:
    """Flat cluster of every token, [B * N]: label + k b, and B k for label -1."""
    b = label.shape[0]
    flat = label + torch.arange(b, device=label.device)[:, None] * k
    return torch.where(label < 0, b * k, flat).flatten()


def segment_sum(values: Tensor, label: Tensor, k: int) -> Tensor:
    """Sums values [B, N, ...] over each cluster, [B, k, ...]; label -1 is left out. Deterministic on every device."""
    b, n = label.shape
    tail = values.shape[2:]
    values = values.reshape(b, n, tail.numel())
    if values.is_cuda and values.is_floating_point():
        # Float atomics would make the sum depend on timing; a product with the indicator does not.
        member = torch.zeros(b, k + 1, n, dtype=values.dtype, device=values.device)
        member.scatter_(1, torch.where(label < 0, k, label)[:, None], 1)
        return torch.bmm(member[:, :k], values).view(b, k, *tail)
    out = values.new_zeros(b * k + 1, values.shape[2])
    index = segment_ids(label, k)[:, None].expand(-1, values.shape[2])
    # Not in place, for under vmap the sums may be many where the zeros are one.
    return out.scatter_add(0, index, values.reshape(b * n, tail.numel()))[: b * k].view(b, k, *tail)


def members_of(label: Tensor, k: int) -> Tensor:
    """How many tokens each cluster has, [B, k] int64."""
    return segment_sum(torch.ones_like(label), label, k)


def only_valid(samples: Samples, label: Tensor) -> Tensor:
    """Labels with -1 where a token is masked."""
    return label if samples.valid is None else label.masked_fill(~samples.valid, -1)


def segment_min(values: Tensor, label: Tensor, k: int, empty: float | int) -> Tensor:
    """Least of values [B, N] in each cluster, [B, k]; `empty` where a cluster has no member."""
    b = label.shape[0]
    out = torch.full((b, k + 1), empty, dtype=values.dtype, device=values.device)
    return out.scatter_reduce(1, torch.where(label < 0, k, label), values, "amin")[:, :k]


def of_cluster(values: Tensor, label: Tensor) -> Tensor:
    """Each token's entry of values [B, k, ...] by its label, [B, N, ...]; label -1 takes the first entry."""
    b, k = values.shape[:2]
    flat = (label.clamp(min=0) + torch.arange(b, device=label.device)[:, None] * k).flatten()
    return values.reshape(b * k, *values.shape[2:]).index_select(0, flat).view(*label.shape, *values.shape[2:])


def member_weight(weight: Tensor | None, label: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights [B, N] and their sums [B, k], with equal weights in clusters whose weights sum to 0."""
    ones = torch.ones_like(label, dtype=dtype)
    if weight is None:
        return ones, segment_sum(ones, label, k)
    weight = weight.to(dtype)
    total = segment_sum(weight, label, k)
    weight = torch.where(of_cluster(total, label) > 0, weight, ones)
    return weight, segment_sum(weight, label, k)


def stable_order(values: Tensor, descending: bool = False) -> Tensor:
    """Places [B, N] of values [B, N] in their order, the lower place first on ties."""
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort, but its TopK is one.
        return values.topk(values.shape[1], dim=1, largest=descending).indices
    return values.argsort(dim=1, descending=descending, stable=True)


def canonical_order(label: Tensor, k: int) -> Tensor:
    """Slots [B, k] in the order of their lowest token index; empty slots last, in their own order."""
    n = label.shape[1]
    index = torch.arange(n, device=label.device).expand_as(label)
    first = segment_min(index, label, k, n)
    return stable_order(first)


def renumber(label: Tensor, order: Tensor) -> Tensor:
    """Labels under the numbering that `order` gives; -1 stays -1."""
    if order.shape[1] == 0:
        return label
    new = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return torch.where(label < 0, label, new.gather(1, label.clamp(min=0)))
