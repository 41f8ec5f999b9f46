"""Ward's agglomeration as compiled loops, one sample at a time: rounds of mergers, and the cut of the dendrogram."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...names import CUTS
from ..eager import cuts
from ..eager.ward import MASS_FLOOR, masses
from ..problem import Found, Samples, Spec
from .jit import jit, over_samples
from .rounds import AT_COUNT, AT_DISTANCE, matrices, merge_tokens, room_for
from .tokens import NO_MASK, NO_WEIGHT

# The bounds of a cut at a count.
NO_BOUNDS = np.empty(0, np.float64)


def ward(samples: Samples, spec: Spec) -> Found:
    """`eager.ward.ward`."""
    x, valid = samples.x, samples.valid
    b, n, _ = x.shape
    label, rounds = torch.empty(b, n, dtype=torch.int64), torch.empty(b, dtype=torch.int64)
    heights = x.new_empty(b, n - 1)
    given = NO_WEIGHT[x.dtype] if samples.weight is None else samples.weight.contiguous()
    there = NO_MASK if valid is None else valid.contiguous()
    rules = samples.n_valid, samples.k, samples.finite, samples.scale, MASS_FLOOR
    bound: Any = NO_BOUNDS
    loose, left = bound, samples.k
    if spec.cuts_by_value:
        bound = cuts.bounds(samples, spec, masses(samples))
        loose, left = cuts.loosened(bound, samples, spec), samples.k.clone()
    cut = CUTS.index(spec.cut), bound, loose, left
    arguments = [*matrices(samples, spec.metric), given, there, *rules, *cut, label, rounds, heights]
    over_samples(run_ward, arguments, b, 4 * b * n * n)
    return Found(label, rounds, heights=heights, k=left if spec.cuts_by_value else None)


@jit
def mergers_made(ordered: Any, cut_at: int, bound: float, scale: Any) -> int:
    """How many of the mergers of ascending heights a cut by value makes: `eager.cuts.mergers_made`."""
    total = 0.0
    for place in range(len(ordered)):
        total += ordered[place]
        if (ordered[place] * scale if cut_at == AT_DISTANCE else total) > bound:
            return place
    return len(ordered)


@jit
def in_order(height: Any, turn: Any) -> Any:
    """The tokens that were merged away, by height, then turn, then index."""
    gone = np.flatnonzero(turn)
    gone = gone[np.argsort(turn[gone] * len(turn) + gone)]
    # This sort is stable.
    return gone[np.argsort(height[gone], kind="mergesort")]


@jit
def cut(
    parent: Any, height: Any, turn: Any, there: Any, want: int, scale: Any, label: Any, heights: Any
) -> None:  # fmt: skip
    """Labels of the clusters that the `want` lowest mergers leave, on equal heights the first; their heights ascending.

    Clusters are numbered by their lowest token, which stands for them: parents are lower than what merged into them.
    """
    n = len(label)
    gone = in_order(height, turn)
    for place in range(want, len(gone)):
        parent[gone[place]] = -1
    for place in range(min(want, len(gone))):
        heights[place] = height[gone[place]] * scale
    count = 0
    for i in range(n):
        if len(there) > 0 and not there[i]:
            label[i] = -1
        elif parent[i] < 0:
            label[i] = count
            count += 1
        else:
            label[i] = label[parent[i]]


@jit
def run_ward(
    gram: Any, bits: Any, weights: Any, valid: Any, counts: Any, clusters: Any, finite: Any, scales: Any, floor: float,
    cut_at: int, bounds: Any, loose: Any, left: Any, labels: Any, rounds: Any, heights: Any, first: int, last: int,
) -> None:  # fmt: skip
    """`ward` of samples first..last-1; weights and valid may be empty, and without a cut by value bounds and loose.

    gram, and bits, the same memory, are overwritten; left, the clusters, is written where values cut.
    """
    room = room_for(gram.shape[1], gram.dtype, bits.dtype)
    equal, everywhere = np.empty(0, gram.dtype), np.empty(0, np.bool_)
    by_value = cut_at != AT_COUNT
    for s in range(first, last):
        labels[s] = 0
        heights[s] = np.inf
        rounds[s] = 0
        want = counts[s] - clusters[s]
        if finite[s] and counts[s] > 0 and (want > 0 or by_value):
            weight, there = weights[s] if len(weights) > 0 else equal, valid[s] if len(valid) > 0 else everywhere
            loosely = loose[s] if by_value else 0.0
            n, whole, rounds[s] = merge_tokens(gram[s], bits[s], weight, there, want, cut_at, loosely, floor, room)
            parent, height, turn = room[2][:n], room[3][:n], room[4][:n]
            if by_value:
                want = max(want, mergers_made(np.sort(height[turn > 0]), cut_at, bounds[s], scales[s]))
                left[s] = counts[s] - want
            cut(parent, height, turn, there[: 0 if whole else n], want, scales[s], labels[s, :n], heights[s])
