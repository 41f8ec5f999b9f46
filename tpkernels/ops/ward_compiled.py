"""Ward's rounds as a compiled loop over one sample at a time, for CPUs where numba is installed.

The same algorithm as the torch twin in `ward.py`: rounds of mutual nearest neighbours, ties by (cost, i XOR j),
neighbours looked for anew only where they merged. The pairs of a round merge one after the other here, which differs in
rounding.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@functools.cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def merge_tree(
    gram: Tensor, mass: Tensor, valid: Tensor | None, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merges every sample until its wanted-th lowest height is certain.

    Args:
        gram: [B, N, N] of the centred tokens, contiguous, on the CPU; overwritten.
        mass: [B, N], in gram's dtype.
        valid: [B, N] bool or None.
        wanted: [B] int64 mergers.

    Returns:
        parent [B, N] int64, height [B, N] (+inf for tokens that were not merged away), turn [B, N] int64 (0 for those),
        rounds [B] int64.
    """
    b, n, _ = gram.shape
    there = torch.ones(b, n, dtype=torch.bool) if valid is None else valid.contiguous()
    parent = torch.arange(n).repeat(b, 1)
    height = torch.full((b, n), torch.inf, dtype=gram.dtype)
    turn = torch.zeros(b, n, dtype=torch.int64)
    rounds = torch.zeros(b, dtype=torch.int64)
    mass = mass.clone(memory_format=torch.contiguous_format)
    columns = [t.numpy() for t in (gram, mass, there, wanted.contiguous(), parent, height, turn, rounds)]
    kernel = _kernel()
    workers = min(torch.get_num_threads(), b)
    bounds = [b * i // workers for i in range(workers + 1)]
    if workers == 1:
        kernel(*columns, 0, b)
    else:
        # The kernel holds no lock: plain threads share the samples, in any process and under any other pool.
        with ThreadPoolExecutor(workers) as pool:
            for job in [pool.submit(kernel, *columns, i, j) for i, j in pairwise(bounds)]:
                job.result()
    return parent, height, turn, rounds


@functools.cache
def _kernel() -> Callable[..., None]:
    import numba
    import numpy as np

    jit: Any = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)

    @jit
    def nearest(cost: Any, i: int, n: int, least: Any, neighbour: Any) -> None:
        row = cost[i]
        best = row[0]
        for c in range(1, n):
            best = min(best, row[c])
        tie = 2 * n
        for c in range(n):
            if row[c] == best and (i ^ c) < tie:
                tie = i ^ c
        least[i] = best
        neighbour[i] = tie ^ i

    @jit
    def start(cost: Any, mass: Any, there: Any, n: int) -> None:
        norm = np.empty(n, cost.dtype)
        for i in range(n):
            norm[i] = cost[i, i]
        two = cost.dtype.type(2)
        for i in range(n):
            for j in range(i):
                sqdist = max(norm[i] + norm[j] - two * cost[i, j], cost.dtype.type(0))
                cost[i, j] = sqdist * (mass[i] * mass[j]) / (mass[i] + mass[j])
            cost[i, i] = np.inf
        for i in range(n):
            for j in range(i):
                if not (there[i] and there[j]):
                    cost[i, j] = np.inf
                cost[j, i] = cost[i, j]

    @jit
    def merge(cost: Any, mass: Any, i: int, j: int, n: int) -> None:
        between, m_i, m_j = cost[i, j], mass[i], mass[j]
        a, b = cost[i], cost[j]
        for c in range(n):
            a[c] = ((m_i + mass[c]) * a[c] + (m_j + mass[c]) * b[c] - mass[c] * between) / (m_i + m_j + mass[c])
            b[c] = np.inf
        a[i] = np.inf
        a[j] = np.inf
        for c in range(n):
            cost[c, i] = a[c]
            cost[c, j] = np.inf
        mass[i] = m_i + m_j

    @jit
    def kernel(
        gram: Any, masses: Any, valid: Any, wanted: Any, parents: Any, heights: Any, turns: Any, rounds: Any,
        first: int, last: int,
    ) -> None:  # fmt: skip
        n = gram.shape[1]
        least = np.empty(n, gram.dtype)
        below = np.empty(n, gram.dtype)
        made = np.empty(n, gram.dtype)
        neighbour = np.empty(n, np.int64)
        merged = np.empty(n, np.bool_)
        for s in range(first, last):
            want = wanted[s]
            if want <= 0:
                continue
            cost, mass, height, turn, parent = gram[s], masses[s], heights[s], turns[s], parents[s]
            start(cost, mass, valid[s], n)
            for i in range(n):
                nearest(cost, i, n, least, neighbour)
                below[i] = 0
            limit = cost.dtype.type(np.inf)
            mergers = 0
            round_ = 0
            for _ in range(2 * n):
                opened = False
                found = 0
                merged[:] = False
                for i in range(n):
                    j = neighbour[i]
                    if turn[i] == 0 and least[i] < limit:
                        opened = True
                        # Pairs merge in the order of their lower index; what is compared is from before the round.
                        if i < j and neighbour[j] == i and not merged[i] and not merged[j]:
                            merged[i] = True
                            merged[j] = True
                            found += 1
                if not opened:
                    break
                if found > 0:
                    round_ += 1
                for i in range(n):
                    j = neighbour[i]
                    if found > 0 and merged[i] and i < j and neighbour[j] == i and turn[i] == 0 and turn[j] == 0:
                        at = max(least[i], max(below[i], below[j]))
                        merge(cost, mass, i, j, n)
                        parent[j], height[j], turn[j], below[i] = i, at, round_, at
                        made[mergers] = at
                        mergers += 1
                if mergers >= want:
                    limit = np.sort(made[:mergers])[want - 1]
                # A neighbour stays valid unless it merged. Rounding can leave no mutual pair: then look at all rows.
                for i in range(n):
                    if turn[i] > 0:
                        least[i] = np.inf
                    elif found == 0 or merged[neighbour[i]]:
                        nearest(cost, i, n, least, neighbour)
            rounds[s] = round_

    return kernel
