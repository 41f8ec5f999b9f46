"""K-Means in Gram space: both halves of an iteration, for one sample, by one program.

A center is `c_s = sum_j m_sj x_j` with m_sj = w_j / W_s for its members. With Q = M G, the squared distance of token i
to center s is `c_s . c_s - 2 Q_si` plus a constant of the token, where `c_s . c_s = sum_i m_si Q_si`. Q is the mean of
rows of G, as pooled tokens are means of rows of X.
"""

import triton
import triton.language as tl

from .means import segment_means, sort_members
from .nearest import nearer, store_nearest


@triton.jit
def update_means(
    p_gram, p_weight, p_label, p_order, p_first, p_total, p_product, p_square, p_stamp, turn, n, k, ld,
    NP: tl.constexpr, R: tl.constexpr, S: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes Q [K, ld], c.c [K] and the stamp [K] of every slot with members; the others keep theirs."""
    sort_members(p_label, p_weight, p_order, p_first, p_total, n, k, NP, R)
    count = tl.load(p_first + k)
    segment_means(
        p_gram, p_label, p_weight, p_order, p_first, p_total, p_product, count, 0, n, ld, 1, ld,
        S, P, PRECISION, False,
    )  # fmt: skip
    tl.debug_barrier()
    o_n = tl.arange(0, NP)
    b_label = tl.load(p_label + o_n, mask=o_n < n, other=-1)
    m_in = b_label >= 0
    b_total = tl.load(p_total + b_label, mask=m_in, other=1.0)
    b_weight = tl.load(p_weight + o_n, mask=o_n < n, other=0.0)
    b_share = tl.where(b_total < 0, 1.0, b_weight) / tl.abs(b_total)
    b_own = tl.where(m_in, b_share * tl.load(p_product + b_label * ld + o_n, mask=m_in, other=0.0), 0.0)
    for s in range(0, k, R):
        o_s = s + tl.arange(0, R)
        m_slot = b_label[None, :] == o_s[:, None]
        m_live = (tl.sum(m_slot.to(tl.int32), 1) > 0) & (o_s < k)
        tl.store(p_square + o_s, tl.sum(tl.where(m_slot, b_own[None, :], 0.0), 1), mask=m_live)
        tl.store(p_stamp + o_s, tl.zeros((R,), tl.int32) + turn, mask=m_live)
    tl.debug_barrier()


@triton.jit
def assign_means(
    p_norm, p_product, p_square, p_label, p_sqdist, b_valid, n, k, ld, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes every token's nearest center (label [N], -1 for an invalid token) and its squared distance."""
    o_n = tl.arange(0, NP)
    b_best = tl.full((NP,), float("inf"), tl.float32)
    b_label = tl.zeros((NP,), tl.int32)
    for s in range(0, k, R):
        o_s = s + tl.arange(0, R)
        # A slot that never had members has c.c = +inf.
        b_square = tl.load(p_square + o_s, mask=o_s < k, other=float("inf"))[:, None]
        m_live = (b_square < float("inf")) & (o_n < ld)[None, :]
        b_score = b_square - 2 * tl.load(p_product + o_s[:, None] * ld + o_n[None, :], mask=m_live, other=0.0)
        b_best, b_label = nearer(b_score, o_s, b_best, b_label)
    store_nearest(p_norm, p_label, p_sqdist, b_best, b_label, b_valid, o_n, n)
