"""Starts of K-Means and K-Medoids: K tokens of a sample, labelled 0..K-1, and all others -1.

`given` indices, the tokens of highest weight (`topk`, the paper's), evenly spaced ones (`strided`), or farthest-first
traversal (Gonzalez, 1985) on the Gram matrix. Ward's clusters as a start are in `ward.py`.
"""

import triton
import triton.language as tl

from .codes import INIT_FARTHEST, INIT_STRIDED, INIT_TOPK


@triton.jit
def _mark_highest(p_score, p_chosen, b_valid, n, k, NP: tl.constexpr, R: tl.constexpr):
    """Marks the k valid tokens of highest score, ties to the lower index."""
    o_n = tl.arange(0, NP)
    b_score = tl.load(p_score + o_n, mask=o_n < n, other=0.0)
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        b_i = tl.load(p_score + o_i, mask=o_i < n, other=0.0)[:, None]
        m_above = (b_score[None, :] > b_i) | ((b_score[None, :] == b_i) & (o_n[None, :] < o_i[:, None]))
        b_above = tl.sum((m_above & b_valid[None, :]).to(tl.int32), 1)
        tl.store(p_chosen + o_i, (b_above < k).to(tl.int32), mask=o_i < n)
    tl.debug_barrier()


@triton.jit
def _mark_farthest(
    p_gram, p_weight, p_norm, p_mean, p_chosen, b_valid, n, slots, ld, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Marks the token of largest w ||x - mu||^2, then one after another that of largest w min_c ||x - x_c||^2."""
    o_n = tl.arange(0, NP)
    b_weight = tl.load(p_weight + o_n, mask=o_n < n, other=0.0)
    b_norm = tl.load(p_norm + o_n, mask=o_n < n, other=0.0)
    b_mass = tl.where(tl.sum(b_weight, 0) > 0, b_weight, b_valid.to(tl.float32))
    total = tl.sum(b_mass, 0)
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        m_g = (o_i < n)[:, None] & (o_n < ld)[None, :]
        b_g = tl.load(p_gram + o_i[:, None] * ld + o_n[None, :], mask=m_g, other=0.0)
        # 0 * inf is NaN: the row's padding holds old scratch, so it is masked and not multiplied by 0.
        b_dot = tl.sum(tl.where((b_mass > 0)[None, :], b_g * b_mass[None, :], 0.0), 1)
        tl.store(p_mean + o_i, b_dot / total, mask=o_i < n)
    tl.debug_barrier()
    b_mean = tl.load(p_mean + o_n, mask=o_n < n, other=0.0)
    # ||x_i - mu||^2 = G_ii - 2 x_i . mu + mu . mu
    b_part = tl.where(b_mass > 0, b_mass * b_mean, 0.0)
    b_least = tl.maximum(b_norm - 2 * b_mean + tl.sum(b_part, 0) / total, 0.0)
    b_chosen = tl.zeros((NP,), tl.int32)
    for step in range(slots):
        b_score = tl.where(b_valid & (b_chosen == 0), b_weight * b_least, -1.0)
        pick = tl.min(tl.where(b_score == tl.max(b_score, 0), o_n, NP), 0)
        b_chosen = tl.where(o_n == pick, 1, b_chosen)
        b_g = tl.load(p_gram + pick * ld + o_n, mask=o_n < n, other=0.0)
        b_sqdist = tl.maximum(b_norm + tl.load(p_norm + pick) - 2 * b_g, 0.0)
        b_least = tl.where(step == 0, b_sqdist, tl.minimum(b_least, b_sqdist))
    tl.store(p_chosen + o_n, b_chosen, mask=o_n < n)
    tl.debug_barrier()


@triton.jit
def _mark_given(p_start, p_chosen, n, k, stride, NP: tl.constexpr, KP: tl.constexpr):
    """Marks the caller's tokens; an index out of range marks none, one given twice marks one."""
    o_n = tl.arange(0, NP)
    tl.store(p_chosen + o_n, tl.zeros((NP,), tl.int32), mask=o_n < n)
    tl.debug_barrier()
    o_k = tl.arange(0, KP)
    b_index = tl.load(p_start + o_k * stride, mask=o_k < k, other=-1).to(tl.int32)
    tl.store(p_chosen + b_index, tl.full((KP,), 1, tl.int32), mask=(b_index >= 0) & (b_index < n))
    tl.debug_barrier()


@triton.jit
def start_labels(
    p_gram, p_start, p_weight, p_norm, p_spare, p_chosen, p_label, b_valid, n, k, count, slots, ld,
    stride_start, INIT: tl.constexpr, NP: tl.constexpr, KP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes the labels [N] of the chosen tokens, numbered in their order."""
    o_n = tl.arange(0, NP)
    if INIT == INIT_STRIDED:
        # The s-th center is the (s count // slots)-th valid token.
        b_rank = tl.cumsum(b_valid.to(tl.int32), 0) - 1
        b_slot = (b_rank * slots + count - 1) // tl.maximum(count, 1)
        m_chosen = b_valid & (b_slot < slots) & (b_slot * count // tl.maximum(slots, 1) == b_rank)
    else:
        if INIT == INIT_TOPK:
            _mark_highest(p_weight, p_chosen, b_valid, n, slots, NP, R)
        elif INIT == INIT_FARTHEST:
            _mark_farthest(p_gram, p_weight, p_norm, p_spare, p_chosen, b_valid, n, slots, ld, NP, R)
        else:
            _mark_given(p_start, p_chosen, n, k, stride_start, NP, KP)
        m_chosen = b_valid & (tl.load(p_chosen + o_n, mask=o_n < n, other=0) > 0)
    b_slot = tl.cumsum(m_chosen.to(tl.int32), 0) - 1
    tl.store(p_label + o_n, tl.where(m_chosen, b_slot, -1), mask=o_n < n)
    tl.debug_barrier()
