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

from ..cpu import jit
from ..cpu.jit import may_look
from ..cpu.lloyd import facts
from .lloyd import LloydResult, own
from .samples import Samples, canonical_order, renumber, segment_sum

# All tokens are tried at most so many times.
PASSES = 8
# A swap must lower the loss by this share of it: rounding does not.
LEAST_GAIN = {torch.float32: 2.0**-20, torch.float64: 2.0**-44}


def swap(samples: Samples, gram: Tensor, found: LloydResult) -> LloydResult:
    """`found` of K-Medoids with its medoids swapped until no swap helps; n_iter counts the swaps too.

    Args:
        gram: X X^T of the samples, [B, N, N].
    """
    medoid = found.medoid
    if medoid is None:
        raise ValueError("found must be K-Medoids', got one without medoids")
    if jit.takes(samples.x):
        label, medoid, count = _compiled(samples, gram, found.label, medoid)
    else:
        label, medoid, count = _twin(samples, gram, medoid)
    order = canonical_order(label, medoid.shape[1])
    label = renumber(label, order)
    return LloydResult(label, label, found.n_iter + count, medoid.gather(1, order))


def _compiled(samples: Samples, gram: Tensor, label: Tensor, medoid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from ..cpu import swap as cpu_swap

    b, n = label.shape
    label, medoid, count = label.clone(), medoid.clone(), torch.zeros(b, dtype=torch.int64)
    arguments = [gram, *facts(samples), label, medoid, count, PASSES, LEAST_GAIN[gram.dtype]]
    jit.over_samples(cpu_swap.swap, arguments, b, PASSES * b * n * n)
    return label, medoid, count


class _State(NamedTuple):
    """What the swaps are judged by: near, second [B, N] distances; label [B, N]; removal [B, K]; loss [B]."""

    near: Tensor
    second: Tensor
    label: Tensor
    removal: Tensor
    loss: Tensor


def _twin(samples: Samples, gram: Tensor, medoid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same swaps for the whole batch at once, one token of every sample at a time.

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
            takes = (best + shared < -LEAST_GAIN[gram.dtype] * loss) & ~samples.plain
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
    # Without a second medoid one is as far as anything.
    far = distance.amax((1, 2))[:, None]
    second = torch.minimum(row.scatter(1, label[:, None], torch.inf).amin(1), far)
    removal = segment_sum(weight * (second - near), label, k)
    return _State(near, second, label, removal, (weight * near).sum(1))
