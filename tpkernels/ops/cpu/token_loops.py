"""Compiled loops over tokens and their channels, one sample at a time: centring, means, the objective.

Imported where they are called, since numba need not be there. What a loop calls stands in its file: numba looks at that
file alone to see whether a loop that it has stored is still the same.

Tokens come as the memory that they lie in, x, with the strides of a sample and of a token; see `compiled.flat`.
"""

from __future__ import annotations

from typing import Any

from . import jit

np: Any = jit.numpy()


@jit.jit
def add(row: Any, total: Any) -> None:
    """Adds row to total."""
    for j in range(len(total)):
        total[j] += row[j]


@jit.jit
def subtract(row: Any, offset: Any, out: Any) -> Any:
    """Writes row - offset; its squared norm."""
    norm = row.dtype.type(0)
    for j in range(len(row)):
        gap = row[j] - offset[j]
        out[j] = gap
        norm += gap * gap
    return norm


@jit.jit
def relative(weight: Any, there: Any, out: Any) -> Any:
    """Writes weights over their largest, 0 for what is not there; the largest, NaN where one is NaN or Inf."""
    top = weight.dtype.type(0)
    for i in range(len(weight)):
        out[i] = weight[i] if there[i] else 0
        if not np.isfinite(out[i]):
            return weight.dtype.type(np.nan)
        top = max(top, out[i])
    top = top if top > 0 else weight.dtype.type(1)
    for i in range(len(weight)):
        out[i] /= top
    return top


@jit.jit
def centre(
    x: Any, per_sample: int, per_token: int, weights: Any, masks: Any, out: Any, relatives: Any, counts: Any,
    finite: Any, offsets: Any, scales: Any, first: int, last: int,
) -> None:  # fmt: skip
    """`samples_compiled.centre`; weights and masks may be empty."""
    n, d = out.shape[1:]
    there = np.ones(n, np.bool_)
    for s in range(first, last):
        if len(masks) > 0:
            there[:] = masks[s]
        count, offset, norm = 0, offsets[s, 0], out.dtype.type(0)
        offset[:] = 0
        for i in range(n):
            if there[i]:
                at = s * per_sample + i * per_token
                add(x[at : at + d], offset)
                count += 1
        offset /= out.dtype.type(max(count, 1))
        for i in range(n):
            if there[i]:
                at = s * per_sample + i * per_token
                norm += subtract(x[at : at + d], offset, out[s, i])
            else:
                out[s, i] = 0
        scale = relative(weights[s], there, relatives[s]) if len(weights) > 0 else out.dtype.type(1)
        counts[s], finite[s], scales[s] = count, np.isfinite(norm) and np.isfinite(scale), scale
        if not finite[s]:
            out[s] = 0
            scales[s] = 1
            if len(weights) > 0:
                relatives[s] = 1


@jit.jit
def means(
    x: Any, per_sample: int, per_token: int, weights: Any, labels: Any, out: Any, keeps: bool, first: int, last: int
) -> None:
    """`pooling_compiled.cluster_mean` and, where it keeps the rows of clusters without members, `moved_means`."""
    n, (k, d) = labels.shape[1], out.shape[1:]
    mass, size = np.empty(k, out.dtype), np.empty(k, out.dtype)
    for s in range(first, last):
        label, weight = labels[s], weights[s]
        mass[:] = 0
        size[:] = 0
        for i in range(n):
            c = label[i]
            if c >= 0:
                mass[c] += weight[i]
                size[c] += out.dtype.type(1)
        for c in range(k):
            if size[c] > 0 or not keeps:
                out[s, c] = 0
        for i in range(n):
            c = label[i]
            if c >= 0:
                at = s * per_sample + i * per_token
                row, total = x[at : at + d], out[s, c]
                share = weight[i] / mass[c] if mass[c] > 0 else out.dtype.type(1) / size[c]
                for j in range(d):
                    total[j] += share * row[j]


@jit.jit
def losses(
    x: Any, per_sample: int, per_token: int, weights: Any, labels: Any, centres: Any, out: Any, first: int, last: int
) -> None:
    """`pooling_compiled.objective`."""
    n, d = labels.shape[1], centres.shape[2]
    for s in range(first, last):
        total = 0.0
        for i in range(n):
            if labels[s, i] >= 0:
                at = s * per_sample + i * per_token
                row, centre = x[at : at + d], centres[s, labels[s, i]]
                sqdist = out.dtype.type(0)
                for j in range(d):
                    sqdist += (row[j] - centre[j]) * (row[j] - centre[j])
                total += weights[s, i] * sqdist
        out[s] = total
