"""K-Medoids refined by swaps as compiled loops: one sample after the other, in its matrix of squared distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..eager.swap import LEAST_GAIN, PASSES, numbered
from ..problem import Found, Samples
from .jit import jit, over_samples
from .tokens import loop_inputs


def swap(samples: Samples, gram: Tensor, found: Found, medoids: Tensor) -> Found:
    """`eager.swap.swap`."""
    b, n = found.label.shape
    label, medoid, count = found.label.clone(), medoids.clone(), torch.zeros(b, dtype=torch.int64)
    arguments = [gram, *loop_inputs(samples), label, medoid, count, PASSES, LEAST_GAIN[gram.dtype]]
    over_samples(run_swaps, arguments, b, PASSES * b * n * n)
    return numbered(found, label, medoid, count)


@jit
def distances(gram: Any, out: Any) -> Any:
    """Writes squared distances [N, N] of a Gram matrix, with a zero diagonal; the largest."""
    n, zero, two = len(gram), out.dtype.type(0), out.dtype.type(2)
    far = zero
    for i in range(n):
        own = gram[i, i]
        for j in range(n):
            out[i, j] = max(own + gram[j, j] - two * gram[i, j], zero)
        out[i, i] = zero
        for j in range(n):
            far = max(far, out[i, j])
    return far


@jit
def find(i: int, distance: Any, medoid: Any, k: int, far: Any, near: Any, second: Any, owner: Any, other: Any) -> None:
    """Nearest and second nearest medoid of token i; without a second one it is as far as anything."""
    near[i] = second[i] = np.inf
    owner[i] = other[i] = -1
    for slot in range(k):
        # Index N means no medoid yet.
        d = distance[medoid[slot], i] if medoid[slot] < len(distance) else near.dtype.type(np.inf)
        if d < near[i]:
            second[i], other[i] = near[i], owner[i]
            near[i], owner[i] = d, slot
        elif d < second[i]:
            second[i], other[i] = d, slot
    second[i] = min(second[i], far)


@jit
def replace(
    slot: int, candidate: int, distance: Any, medoid: Any, k: int, far: Any, near: Any, second: Any, owner: Any,
    other: Any,
) -> None:  # fmt: skip
    """Makes candidate the medoid of a slot; only tokens that had the old one look at all medoids again."""
    medoid[slot] = candidate
    row = distance[candidate]
    for i in range(len(row)):
        d = row[i]
        if owner[i] == slot or other[i] == slot:
            find(i, distance, medoid, k, far, near, second, owner, other)
        elif d < near[i] or (d == near[i] and slot < owner[i]):
            second[i], other[i] = near[i], owner[i]
            near[i], owner[i] = d, slot
        elif d < second[i] or (d == second[i] and slot < other[i]):
            second[i], other[i] = d, slot


@jit
def costs(weight: Any, near: Any, second: Any, owner: Any, removal: Any) -> Any:
    """Writes what the loss grows by without each slot's medoid; the loss."""
    removal[:] = 0
    loss = removal.dtype.type(0)
    for i in range(len(near)):
        loss += weight[i] * near[i]
        removal[owner[i]] += weight[i] * (second[i] - near[i])
    return loss


@jit
def gain(row: Any, weight: Any, near: Any, second: Any, owner: Any, removal: Any, k: int, change: Any) -> tuple:
    """The slot whose medoid is best given up for the token of this row of distances, and the change of the loss."""
    change[:k] = removal[:k]
    shared = removal.dtype.type(0)
    for i in range(len(row)):
        d = row[i]
        if d < second[i]:
            if d < near[i]:
                shared += weight[i] * (d - near[i])
                change[owner[i]] += weight[i] * (near[i] - second[i])
            else:
                change[owner[i]] += weight[i] * (d - second[i])
    best = 0
    for slot in range(1, k):
        if change[slot] < change[best]:
            best = slot
    return best, change[best] + shared


@jit
def run_swaps(
    grams: Any, weights: Any, valid: Any, wanted: Any, labels: Any, medoids: Any, swaps: Any, passes: int, slack: float,
    first: int, last: int,
) -> None:  # fmt: skip
    """The swaps of samples first..last-1: medoids come as the start's; one with nothing wanted stays as it is."""
    n, kind = grams.shape[1], grams.dtype.type
    width = medoids.shape[1]
    distance = np.empty((n, n), grams.dtype)
    near, second, weight = np.empty(n, grams.dtype), np.empty(n, grams.dtype), np.empty(n, grams.dtype)
    owner, other = np.empty(n, np.int32), np.empty(n, np.int32)
    removal, change = np.empty(width, grams.dtype), np.empty(width, grams.dtype)
    for s in range(first, last):
        k, medoid = wanted[s], medoids[s]
        if k == 0:
            continue
        far = distances(grams[s], distance)
        for i in range(n):
            weight[i] = weights[s, i] if valid[s, i] else kind(0)
            find(i, distance, medoid, k, far, near, second, owner, other)
        loss = costs(weight, near, second, owner, removal)
        # All tokens in a row without a swap: no swap helps.
        idle = 0
        for turn in range(passes * n):
            candidate = turn % n
            idle += 1
            if idle > n:
                break
            if not valid[s, candidate]:
                continue
            slot, by = gain(distance[candidate], weight, near, second, owner, removal, k, change)
            if by < -kind(slack) * loss:
                replace(slot, candidate, distance, medoid, k, far, near, second, owner, other)
                loss = costs(weight, near, second, owner, removal)
                swaps[s] += 1
                idle = 0
        for i in range(n):
            labels[s, i] = owner[i] if valid[s, i] else -1
        for slot in range(k):
            # Among equal tokens too, a medoid belongs to its own cluster.
            if medoid[slot] < n:
                labels[s, medoid[slot]] = slot
