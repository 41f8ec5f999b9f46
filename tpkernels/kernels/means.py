"""K-Means in Gram space: both halves of an iteration, for one sample, by one program.

A centre is `c_s = sum_j m_sj x_j` with m_sj = w_j / W_s for its members. With S = M G, the distance of token i to
centre s is `c_s . c_s - 2 S_si` plus a constant of the token, where `c_s . c_s = sum_i m_si S_si`.
"""

import triton
import triton.language as tl


@triton.jit
def update_means(
    p_gram, p_weight, p_label, p_product, p_square, p_stamp, turn, n, k,
    NP: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes S [K, NP], c.c [K] and the turn of the update [K] of every slot with members; the others keep theirs."""
    for s in range(0, k, T):
        o_s = s + tl.arange(0, T)
        b_mass = tl.zeros((T,), tl.float32)
        b_count = tl.zeros((T,), tl.float32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            m_in = tl.load(p_label + o_j)[None, :] == o_s[:, None]
            b_mass += tl.sum(tl.where(m_in, tl.load(p_weight + o_j)[None, :], 0.0), 1)
            b_count += tl.sum(tl.where(m_in, 1.0, 0.0), 1)
        m_live = b_count > 0
        # Weights that sum to 0 count as equal ones.
        b_equal = tl.where(b_mass > 0, 0.0, 1.0)[:, None]
        b_total = tl.where(b_mass > 0, b_mass, tl.maximum(b_count, 1.0))[:, None]
        b_square = tl.zeros((T,), tl.float32)
        for i in range(0, n, T):
            o_i = i + tl.arange(0, T)
            b_product = tl.zeros((T, T), tl.float32)
            for j in range(0, n, T):
                o_j = j + tl.arange(0, T)
                m_in = tl.load(p_label + o_j)[None, :] == o_s[:, None]
                b_share = tl.where(m_in, (tl.load(p_weight + o_j)[None, :] + b_equal) / b_total, 0.0)
                b_g = tl.load(p_gram + o_j[:, None] * NP + o_i[None, :])
                b_product = tl.dot(b_share, b_g, b_product, input_precision=PRECISION)
            m_in = tl.load(p_label + o_i)[None, :] == o_s[:, None]
            b_share = tl.where(m_in, (tl.load(p_weight + o_i)[None, :] + b_equal) / b_total, 0.0)
            b_square += tl.sum(b_share * b_product, 1)
            tl.store(p_product + o_s[:, None] * NP + o_i[None, :], b_product, mask=m_live[:, None])
        tl.store(p_square + o_s, b_square, mask=m_live)
        tl.store(p_stamp + o_s, tl.full((T,), 0, tl.int32) + turn, mask=m_live)
    tl.debug_barrier()


@triton.jit
def assign_means(p_norm, p_valid, p_product, p_square, p_label, p_sqdist, n, k, NP: tl.constexpr, T: tl.constexpr):
    """Writes every token's nearest centre (label [NP], -1 where invalid) and its squared distance."""
    for i in range(0, n, T):
        o_i = i + tl.arange(0, T)
        b_best = tl.full((T,), float("inf"), tl.float32)
        b_label = tl.zeros((T,), tl.int32)
        for s in range(0, k, T):
            o_s = s + tl.arange(0, T)
            # Inf stands for a slot that never had members.
            b_square = tl.load(p_square + o_s, mask=o_s < k, other=float("inf"))[:, None]
            m_live = b_square < float("inf")
            b_product = tl.load(p_product + o_s[:, None] * NP + o_i[None, :], mask=m_live, other=0.0)
            b_score = b_square - 2 * b_product
            b_least = tl.min(b_score, 0)
            b_slot = tl.min(tl.where(b_score == b_least[None, :], o_s[:, None], 2147483647), 0)
            b_label = tl.where(b_least < b_best, b_slot, b_label)
            b_best = tl.minimum(b_best, b_least)
        m_valid = tl.load(p_valid + o_i) > 0
        tl.store(p_label + o_i, tl.where(m_valid, b_label, -1))
        tl.store(p_sqdist + o_i, tl.maximum(tl.load(p_norm + o_i) + b_best, 0.0))
    tl.debug_barrier()
