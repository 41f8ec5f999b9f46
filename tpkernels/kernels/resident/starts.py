"""Starts of K-Means and K-Medoids: K tokens of a sample, labelled 0..K-1, and all others -1.

`given` indices, the tokens of highest weight (`topk`, the paper's), evenly spaced ones (`strided`), or farthest-first
traversal (Gonzalez, 1985) on the Gram matrix. Ward's clusters as a start are in `ward.py`.
"""

import triton
import triton.language as tl

from .codes import INIT_FARTHEST, INIT_STRIDED, INIT_TOPK
from .order import ascending, ordered


@triton.jit
def _highest(b_score, b_valid, slots, NP: tl.constexpr):
    """Which valid tokens are among those of highest score, ties to the lower index."""
    o_n = tl.arange(0, NP)
    b_rank = tl.where(b_valid, ordered(b_score.to(tl.int32, bitcast=True)), -0x7FFFFFFF)
    b_key = (b_rank.to(tl.int64) << 32) - o_n
    least = tl.sum(tl.where(o_n + slots == NP, ascending(b_key, NP), 0), 0)
    return b_valid & (b_key >= least)


@triton.jit
def _farthest(b_weight, b_valid, slots, s, z, NP: tl.constexpr):
    """The token of largest w ||x - mu||^2, then one after another that of largest w min_c ||x - x_c||^2."""
    o_n = tl.arange(0, NP)
    m_n = o_n < z.n
    b_norm = tl.load(s.norm + o_n, mask=m_n, other=0.0)
    equal = tl.sum(b_weight, 0) == 0
    b_mass = tl.where(equal, b_valid.to(tl.float32), b_weight)
    total = tl.sum(b_mass, 0)
    b_mean = tl.zeros((NP,), tl.float32)
    for j in tl.range(0, z.n, num_stages=1):
        # An invalid token has an empty row and mass 0.
        mass = tl.where(equal, 1.0, tl.load(s.weight + j))
        b_mean += mass * tl.load(s.gram + j * z.ld + o_n, mask=m_n, other=0.0)
    b_mean /= total
    # ||x_i - mu||^2 = G_ii - 2 x_i . mu + mu . mu
    b_part = tl.where(b_mass > 0, b_mass * b_mean, 0.0)
    b_least = tl.maximum(b_norm - 2 * b_mean + tl.sum(b_part, 0) / total, 0.0)
    m_chosen = o_n < 0
    for step in tl.range(0, slots, num_stages=1):
        b_score = tl.where(b_valid & (m_chosen == 0), b_weight * b_least, -1.0)
        pick = tl.min(tl.where(b_score == tl.max(b_score, 0), o_n, NP), 0)
        m_chosen = m_chosen | (o_n == pick)
        b_g = tl.load(s.gram + pick * z.ld + o_n, mask=m_n, other=0.0)
        b_sqdist = tl.maximum(b_norm + tl.load(s.norm + pick) - 2 * b_g, 0.0)
        b_least = tl.where(step == 0, b_sqdist, tl.minimum(b_least, b_sqdist))
    return m_chosen


@triton.jit
def _given(p_start, stride, slots, s, z, tile):
    """The caller's first tokens, one for each slot; an index out of range marks none, one given twice marks one."""
    o_n = tl.arange(0, tile.NP)
    tl.store(s.order + o_n, tl.zeros((tile.NP,), tl.int32))
    tl.debug_barrier()
    o_k = tl.arange(0, tile.KP)
    b_index = tl.load(p_start + o_k * stride, mask=o_k < slots, other=-1).to(tl.int32)
    tl.store(s.order + b_index, tl.full((tile.KP,), 1, tl.int32), mask=(b_index >= 0) & (b_index < z.n))
    tl.debug_barrier()
    return tl.load(s.order + o_n, mask=o_n < z.n, other=0) > 0


@triton.jit
def start_labels(p_start, stride, b_valid, count, slots, s, z, kind, tile):
    """Writes the labels [N] of the chosen tokens, numbered in their order."""
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    if kind.INIT == INIT_STRIDED:
        # The s-th center is the (s count // slots)-th valid token.
        b_rank = tl.cumsum(b_valid.to(tl.int32), 0) - 1
        b_slot = (b_rank * slots + count - 1) // tl.maximum(count, 1)
        m_chosen = b_valid & (b_slot < slots) & (b_slot * count // tl.maximum(slots, 1) == b_rank)
    elif kind.INIT == INIT_TOPK:
        m_chosen = _highest(tl.load(s.weight + o_n, mask=o_n < z.n, other=0.0), b_valid, slots, NP)
    elif kind.INIT == INIT_FARTHEST:
        b_weight = tl.load(s.weight + o_n, mask=o_n < z.n, other=0.0)
        m_chosen = _farthest(b_weight, b_valid, slots, s, z, NP)
    else:
        m_chosen = b_valid & _given(p_start, stride, slots, s, z, tile)
    b_slot = tl.cumsum(m_chosen.to(tl.int32), 0) - 1
    tl.store(s.label + o_n, tl.where(m_chosen, b_slot, -1), mask=o_n < z.n)
    tl.debug_barrier()
