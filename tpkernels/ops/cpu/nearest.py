"""The nearest center of every token, as compiled loops over products of centers with tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .jit import jit, over_samples

# Products [B, K, T] of a tile of tokens: what is read soon after it was written is still in the cache.
TILE_ELEMENTS = 1 << 19


def nearest(x: Tensor, center: Tensor, dead: Tensor) -> Tensor:
    """`eager.lloyd.nearest`: slot [B, N] of least `||c||^2 / 2 - <c, x>` for every token, the lowest on ties."""
    b, n, _ = x.shape
    k = center.shape[1]
    half_norm = (center.square().sum(-1) / 2).masked_fill(dead, torch.inf)
    tile = max(1, min(n, TILE_ELEMENTS // max(1, k)))
    group = max(1, TILE_ELEMENTS // max(1, k * tile))
    product = x.new_empty(min(group, b), k, tile)
    label = torch.empty(b, n, dtype=torch.int64)
    for i in range(0, b, group):
        for j in range(0, n, tile):
            part = x[i : i + group, j : j + tile]
            g, t, _ = part.shape
            score = product.view(-1)[: g * k * t].view(g, k, t)
            torch.bmm(center[i : i + group], part.mT, out=score)
            arguments = [score, half_norm[i : i + group], label[i : i + group], j]
            over_samples(nearest_of_products, arguments, g, g * k * t)
    return label


@jit
def assign(table: Any, at: int, place: Any, half: Any, k: int, best: Any, label: Any) -> None:
    """The slot c < k of least `half[c] - table[place[c], at + i]` for every label i, the lowest on ties."""
    best[:] = np.inf
    label[:] = 0
    for slot in range(0, k, 4):
        # Four slots per pass over best and label; at the end the last slot repeats, which changes nothing.
        b, c, d = min(slot + 1, k - 1), min(slot + 2, k - 1), min(slot + 3, k - 1)
        a_half, b_half, c_half, d_half = half[slot], half[b], half[c], half[d]
        a_row, b_row = table[place[slot]][at : at + len(best)], table[place[b]][at : at + len(best)]
        c_row, d_row = table[place[c]][at : at + len(best)], table[place[d]][at : at + len(best)]
        a_slot, b_slot, c_slot, d_slot = np.int32(slot), np.int32(b), np.int32(c), np.int32(d)
        for i in range(len(best)):
            least, owner = best[i], label[i]
            score = a_half - a_row[i]
            owner, least = (a_slot, score) if score < least else (owner, least)
            score = b_half - b_row[i]
            owner, least = (b_slot, score) if score < least else (owner, least)
            score = c_half - c_row[i]
            owner, least = (c_slot, score) if score < least else (owner, least)
            score = d_half - d_row[i]
            owner, least = (d_slot, score) if score < least else (owner, least)
            best[i], label[i] = least, owner


@jit
def take(fresh: Any, there: Any, label: Any, changed: Any) -> bool:
    """Writes fresh labels into label, marks the clusters that lost or won a token; whether any did."""
    moved = False
    for i in range(len(label)):
        new = fresh[i] if there[i] else -1
        if new != label[i]:
            moved = True
            if label[i] >= 0:
                changed[label[i]] = True
            if new >= 0:
                changed[new] = True
            label[i] = new
    return moved


@jit
def nearest_of_products(products: Any, half_norms: Any, labels: Any, at: int, first: int, last: int) -> None:
    """`nearest` of the tokens from `at` on, from their products [B, K, T] with the centers."""
    k, n = products.shape[1:]
    best, fresh, place = np.empty(n, products.dtype), np.empty(n, np.int32), np.arange(k)
    for s in range(first, last):
        assign(products[s], 0, place, half_norms[s], k, best, fresh)
        labels[s, at : at + n] = fresh
