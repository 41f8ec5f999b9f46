"""K-Medoids refined by swaps: a medoid is given up for a token that is none wherever that lowers the loss.

The first swap that helps is made (FasterPAM: Schubert and Rousseeuw, arXiv 2008.05171): tokens are tried in their order
against all medoids at once, since with the nearest and second nearest medoid of every token at hand, the change of the
loss by each of the K swaps costs O(N) in all. What alternating updates end with is above what this ends with, for they
never move a medoid out of its cluster.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..context import may_look
from ..problem import Found, Samples
from .segments import canonical_order, renumber, segment_sum

# Passes over all tokens, at most.
PASSES = 8
# Least share of the loss that a swap must gain, above what rounding gains.
LEAST_GAIN = {torch.float32: 2.0**-20, torch.float64: 2.0**-44}


def swap(samples: Samples, gram: Tensor, found: Found, medoids: Tensor) -> Found:
    """`found` of K-Medoids with its medoids swapped until no swap helps; n_iter counts the swaps too.

    Args:
        gram: X X^T of the samples, [B, N, N]. medoids: those of `found`, [B, K].
    """
    return numbered(found, *_swapped(samples, gram, medoids))


def numbered(found: Found, label: Tensor, medoid: Tensor, count: Tensor) -> Found:
    """What swaps found, from labels [B, N] and medoids [B, K] that are not numbered yet, and their count [B]."""
    order = canonical_order(label, medoid.shape[1])
    return Found(renumber(label, order), found.n_iter + count, medoids=medoid.gather(1, order))


def own(samples: Samples, label: Tensor, medoid: Tensor) -> Tensor:
    """Gives every medoid its own cluster, among equal tokens too."""
    slot = torch.arange(medoid.shape[1], device=label.device).expand_as(medoid)
    # Column N collects the slots without a medoid.
    label = torch.cat([label, label[:, :1]], 1).scatter(1, medoid, slot)[:, : label.shape[1]]
    return samples.only_valid(label)


class _State(NamedTuple):
    """What the swaps are judged by: near, second [B, N] distances; label [B, N]; removal [B, K]; loss [B]."""

    near: Tensor
    second: Tensor
    label: Tensor
    removal: Tensor
    loss: Tensor


def _swapped(samples: Samples, gram: Tensor, medoid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Label [B, N], medoid [B, K] and swaps [B]: one token of every sample is tried at a time.

    On a CPU only samples that swap are looked at again. An accelerator would have to be waited for: there all are, and
    all passes run.
    """
    b, n, _ = gram.shape
    k = medoid.shape[1]
    looks = may_look(samples.x)
    distance = _distances(gram)
    weight = gram.new_ones(b, n) if samples.weight is None else samples.weight
    weight = weight if samples.valid is None else weight.masked_fill(~samples.valid, 0)
    slots = torch.arange(k, device=gram.device)
    open_slot = slots < samples.k[:, None]
    medoid, count = medoid.clone(), torch.zeros(b, dtype=torch.int64, device=gram.device)
    state = _state(distance, medoid, weight)
    for _ in range(PASSES):
        before = count
        for token in range(n):
            row = distance[:, token]
            near, second, label, removal, loss = state
            shared = (weight * (row - near).clamp(max=0)).sum(1)
            without = weight * (torch.minimum(torch.maximum(row, near), second) - second)
            change = (removal + segment_sum(without, label, k)).masked_fill(~open_slot, torch.inf)
            best, slot = change.min(1)
            takes = best + shared < -LEAST_GAIN[gram.dtype] * loss
            takes = takes if samples.plain is None else takes & ~samples.plain
            takes = takes if samples.valid is None else takes & samples.valid[:, token]
            if looks and not bool(takes.any()):
                continue
            count = count + takes
            medoid = torch.where(takes[:, None] & (slots == slot[:, None]), token, medoid)
            if looks:
                some = takes.nonzero().squeeze(1)
                fresh = _state(distance[some], medoid[some], weight[some])
                state = _State(*(old.index_copy(0, some, new) for old, new in zip(state, fresh, strict=True)))
            else:
                state = _state(distance, medoid, weight)
        if looks and torch.equal(count, before):
            break
    return own(samples, state.label, medoid), medoid, count


def _distances(gram: Tensor) -> Tensor:
    """Squared distances [B, N, N] of Gram matrices, with a zero diagonal."""
    norm = gram.diagonal(dim1=1, dim2=2)
    distance = (norm[:, :, None] + norm[:, None]).sub_(gram, alpha=2).clamp_(min=0)
    distance.diagonal(dim1=1, dim2=2).zero_()
    return distance


def _state(distance: Tensor, medoid: Tensor, weight: Tensor) -> _State:
    b, k = medoid.shape
    n = distance.shape[1]
    row = distance.gather(1, medoid.clamp(max=n - 1)[..., None].expand(b, k, n))
    row = row.masked_fill((medoid == n)[..., None], torch.inf)
    near, label = row.min(1)
    # With one medoid alone the second is as far as the farthest token.
    far = distance.amax((1, 2))[:, None]
    second = torch.minimum(row.scatter(1, label[:, None], torch.inf).amin(1), far)
    removal = segment_sum(weight * (second - near), label, k)
    return _State(near, second, label, removal, (weight * near).sum(1))
