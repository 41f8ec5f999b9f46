"""K-Means and K-Medoids as compiled loops over one sample's Gram matrix at a time.

The same algorithms as in `eager/lloyd.py`, in less work: with G = X X^T the distance of token i to the mean of the
tokens j with shares p_j is `q / 2 - S_i` up to a constant of the token, where `S_i = sum_j p_j G_ji` and
`q = sum_j p_j S_j`, so no iteration touches the channels; and only clusters whose members changed are updated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..eager import lloyd as eager
from ..eager.lloyd import Steps
from ..eager.means import TIE
from ..problem import Found, Samples, Spec
from . import table
from .jit import jit, over_samples, writable
from .members import add, medoid_of, nearest_members, sort_members, weighted_mean
from .nearest import assign, nearest, take
from .swap import swap
from .tokens import cluster_mean, loop_inputs, moved_means

# The Gram matrix costs N^2 D and saves N K D in every assignment: it pays up to this many tokens per cluster.
GRAM_SHARE = 6
STEPS = Steps(nearest, cluster_mean, moved_means, nearest_members)


def lloyd(_: Tensor, samples: Samples, start: Tensor, spec: Spec) -> Callable[[], Found]:
    """`eager.lloyd.lloyd`."""
    return partial(kmeans if spec.method == "kmeans" else kmedoids, samples, start, spec)


def kmeans(samples: Samples, start: Tensor, spec: Spec) -> Found:
    """K-Means from the means of the labeled tokens of `start` [B, N]."""
    x, k = samples.x, spec.k
    if x.shape[1] > min(eager.GRAM_LIMIT, k * GRAM_SHARE):
        if not table.fits(x, k):
            return eager.kmeans(samples, start, spec, STEPS)
        return eager.numbered(samples, *table.kmeans(samples, start, spec))
    b, _, d = x.shape
    label, source, n_iter = writable(start), writable(start), start.new_zeros(b)
    # Only centers of clusters that lost their members are written.
    lost, kept = torch.zeros(b, k, dtype=torch.bool), x.new_empty(b, k, d)
    _run(run_kmeans, samples, torch.bmm(x, x.mT), [label, source, kept, lost, n_iter, spec.max_iter], k)
    return Found(label, n_iter, source, kept=kept, lost=lost)


def kmedoids(samples: Samples, start: Tensor, spec: Spec) -> Found:
    """K-Medoids from the medoids of the labeled tokens of `start` [B, N]."""
    x, k = samples.x, spec.k
    b, n = start.shape
    if n > eager.GRAM_LIMIT and not spec.swaps:
        return eager.kmedoids(samples, start, spec, STEPS)
    gram = torch.bmm(x, x.mT)
    label, n_iter, medoid = writable(start), start.new_zeros(b), start.new_full((b, k), n)
    _run(run_kmedoids, samples, gram, [label, medoid, n_iter, spec.max_iter, TIE[x.dtype]], k)
    found = Found(label, n_iter, medoids=medoid)
    return swap(samples, gram, found, medoid) if spec.swaps else found


def _run(loop: Any, samples: Samples, gram: Tensor, results: list[Any], k: int) -> None:
    b, n, d = samples.x.shape
    arguments = [gram, samples.x.contiguous(), *loop_inputs(samples), *results]
    over_samples(loop, arguments, b, b * n * (n + d + k))


@jit
def number(label: Any, k: int, new: Any) -> None:
    """new [k]: the rank of every slot by its lowest token, empty ones last in their own order."""
    new[:k] = -1
    count = 0
    for i in range(len(label)):
        if label[i] >= 0 and new[label[i]] < 0:
            new[label[i]] = count
            count += 1
    for c in range(k):
        if new[c] < 0:
            new[c] = count
            count += 1


@jit
def renumber(label: Any, new: Any) -> None:
    """Gives labels their new numbers; -1 stays."""
    for i in range(len(label)):
        if label[i] >= 0:
            label[i] = new[label[i]]


@jit
def run_kmedoids(
    grams: Any, tokens: Any, weights: Any, valid: Any, wanted: Any, labels: Any, medoids: Any, n_iter: Any,
    max_iter: int, tie: float, first: int, last: int,
) -> None:  # fmt: skip
    """`kmedoids`: labels come as the start's; a sample with nothing wanted stays as it is."""
    n, d = tokens.shape[1:]
    width = medoids.shape[1]
    order, begin, new = np.empty(n, np.int64), np.empty(width + 1, np.int64), np.empty(width, np.int64)
    share, mean, best = np.empty(n, tokens.dtype), np.empty(d, tokens.dtype), np.empty(n, tokens.dtype)
    fresh, changed, half = np.empty(n, np.int32), np.empty(width, np.bool_), np.empty(width, tokens.dtype)
    medoid, place = np.empty(width, np.int64), np.empty(width, np.int64)
    for s in range(first, last):
        k, gram, label = wanted[s], grams[s], labels[s]
        if k == 0:
            continue
        # A slot that no token starts stays empty: its half norm is infinite.
        medoid[:] = n
        place[:] = 0
        half[:] = np.inf
        changed[:] = True
        for turn in range(max_iter + 1):
            sort_members(label, k, order, begin)
            for c in range(k):
                members = order[begin[c] : begin[c + 1]]
                if changed[c] and len(members) > 0:
                    medoid[c] = medoid_of(tokens[s], weights[s], members, tie, share, mean)
                    place[c] = medoid[c]
                    half[c] = gram[medoid[c], medoid[c]] * tokens.dtype.type(0.5)
            assign(gram, 0, place, half, k, best, fresh)
            for c in range(k):
                # Among equal tokens too, a medoid belongs to its own cluster.
                if medoid[c] < n:
                    fresh[medoid[c]] = c
            changed[:] = False
            if not take(fresh, valid[s], label, changed) and turn > 0:
                break
            n_iter[s] = min(turn + 1, max_iter)
        number(label, k, new)
        renumber(label, new)
        for c in range(k):
            medoids[s, new[c]] = medoid[c]


@jit
def center_of(c: int, label: Any, x: Any, weight: Any, center: Any) -> None:
    """Writes the weighted mean of the tokens with label c into center [D]."""
    mass, count = center.dtype.type(0), center.dtype.type(0)
    for i in range(len(label)):
        if label[i] == c:
            mass += weight[i]
            count += center.dtype.type(1)
    center[:] = 0
    for i in range(len(label)):
        if label[i] == c:
            add(weight[i] / mass if mass > 0 else center.dtype.type(1) / count, x[i], center)


@jit
def run_kmeans(
    grams: Any, tokens: Any, weights: Any, valid: Any, wanted: Any, labels: Any, sources: Any, kept: Any, lost: Any,
    n_iter: Any, max_iter: int, first: int, last: int,
) -> None:  # fmt: skip
    """`kmeans`: labels and sources come as the start's; a sample with nothing wanted stays as it is."""
    n = tokens.shape[1]
    width, d = kept.shape[1:]
    order, begin, new = np.empty(n, np.int64), np.empty(width + 1, np.int64), np.empty(width, np.int64)
    share, best = np.empty(n, tokens.dtype), np.empty(n, tokens.dtype)
    rows, half, place = np.empty((width, n), tokens.dtype), np.empty(width, tokens.dtype), np.arange(width)
    # Needed only for clusters that lost their members: iterations read rows and half.
    center = np.empty((width, d), tokens.dtype)
    fresh, changed = np.empty(n, np.int32), np.empty(width, np.bool_)
    for s in range(first, last):
        k, gram, label, source, weight = wanted[s], grams[s], labels[s], sources[s], weights[s]
        if k == 0:
            continue
        changed[:] = True
        half[:] = np.inf
        for turn in range(max_iter + 1):
            sort_members(label, k, order, begin)
            for c in range(k):
                members = order[begin[c] : begin[c + 1]]
                if changed[c] and len(members) > 0:
                    weighted_mean(gram, weight, members, share, rows[c])
                    norm = tokens.dtype.type(0)
                    for at in range(len(members)):
                        norm += share[at] * rows[c, members[at]]
                    half[c] = norm * tokens.dtype.type(0.5)
                elif changed[c]:
                    center_of(c, source, tokens[s], weight, center[c])
            source[:] = label
            assign(rows, 0, place, half, k, best, fresh)
            changed[:] = False
            if not take(fresh, valid[s], label, changed) and turn > 0:
                break
            n_iter[s] = min(turn + 1, max_iter)
        number(label, k, new)
        renumber(label, new)
        renumber(source, new)
        for c in range(k):
            if begin[c] == begin[c + 1]:
                lost[s, new[c]] = True
                kept[s, new[c]] = center[c]
