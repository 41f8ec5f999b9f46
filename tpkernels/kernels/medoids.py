"""K-Medoids in Gram space: both halves of an iteration, for one sample, by one program.

With G = X X^T of the centred tokens, the cost of token i as medoid of its cluster C is
`||x_i - mu||^2 = G_ii - 2 sum_{j in C} w_j G_ij / W` plus a constant of the cluster, and the distance of token i to
medoid m is `G_mm - 2 G_mi` plus a constant of the token. Neither touches the D channels.
"""

import triton
import triton.language as tl

# Costs that differ by less than the rounding of the Gram matrix are tied; then the lowest index wins.
SLACK = tl.constexpr(2.0**-20)


@triton.jit
def update_medoids(p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, NP: tl.constexpr, T: tl.constexpr):
    """Writes the medoid of every slot below k (NP for a slot without members) from labels [NP]."""
    for i in range(0, n, T):
        o_i = i + tl.arange(0, T)
        l_i = tl.load(p_label + o_i)
        b_dot = tl.zeros((T,), tl.float32)
        b_mass = tl.zeros((T,), tl.float32)
        b_plain = tl.zeros((T,), tl.float32)
        b_count = tl.zeros((T,), tl.float32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            l_j = tl.load(p_label + o_j)
            b_w = tl.load(p_weight + o_j)[None, :]
            b_g = tl.load(p_gram + o_i[:, None] * NP + o_j[None, :])
            m_same = (l_i[:, None] == l_j[None, :]) & (l_j >= 0)[None, :]
            b_dot += tl.sum(tl.where(m_same, b_g * b_w, 0.0), 1)
            b_mass += tl.sum(tl.where(m_same, b_w, 0.0), 1)
            b_plain += tl.sum(tl.where(m_same, b_g, 0.0), 1)
            b_count += tl.sum(tl.where(m_same, 1.0, 0.0), 1)
        # Weights that sum to 0 count as equal ones.
        b_mean = tl.where(b_mass > 0, b_dot / tl.where(b_mass > 0, b_mass, 1.0), b_plain / tl.maximum(b_count, 1.0))
        tl.store(p_cost + o_i, tl.load(p_norm + o_i) - 2 * b_mean)
    tl.debug_barrier()
    for s in range(0, k, T):
        o_s = s + tl.arange(0, T)
        b_least = tl.full((T,), float("inf"), tl.float32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            m_in = tl.load(p_label + o_j)[None, :] == o_s[:, None]
            b_least = tl.minimum(b_least, tl.min(tl.where(m_in, tl.load(p_cost + o_j)[None, :], float("inf")), 1))
        b_winner = tl.full((T,), NP, tl.int32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            b_limit = b_least[:, None] + SLACK * tl.load(p_norm + o_j)[None, :]
            m_in = tl.load(p_label + o_j)[None, :] == o_s[:, None]
            m_in = m_in & (tl.load(p_cost + o_j)[None, :] <= b_limit)
            b_winner = tl.minimum(b_winner, tl.min(tl.where(m_in, o_j[None, :], NP), 1))
        tl.store(p_medoid + o_s, b_winner)
    tl.debug_barrier()


@triton.jit
def assign_medoids(p_gram, p_norm, p_valid, p_medoid, p_label, p_sqdist, n, k, NP: tl.constexpr, T: tl.constexpr):
    """Writes every token's nearest medoid (label [NP], -1 where invalid) and its squared distance."""
    for i in range(0, n, T):
        o_i = i + tl.arange(0, T)
        b_best = tl.full((T,), float("inf"), tl.float32)
        b_label = tl.zeros((T,), tl.int32)
        for s in range(0, k, T):
            o_s = s + tl.arange(0, T)
            b_m = tl.load(p_medoid + o_s, mask=o_s < k, other=NP)
            m_live = (b_m < NP)[:, None]
            b_g = tl.load(p_gram + b_m[:, None] * NP + o_i[None, :], mask=m_live, other=0.0)
            b_score = tl.load(p_norm + b_m, mask=b_m < NP, other=0.0)[:, None] - 2 * b_g
            b_score = tl.where(m_live, b_score, float("inf"))
            # Among equal tokens too, a medoid belongs to its own cluster.
            b_score = tl.where(b_m[:, None] == o_i[None, :], float("-inf"), b_score)
            b_least = tl.min(b_score, 0)
            b_slot = tl.min(tl.where(b_score == b_least[None, :], o_s[:, None], 2147483647), 0)
            b_label = tl.where(b_least < b_best, b_slot, b_label)
            b_best = tl.minimum(b_best, b_least)
        m_valid = tl.load(p_valid + o_i) > 0
        tl.store(p_label + o_i, tl.where(m_valid, b_label, -1))
        tl.store(p_sqdist + o_i, tl.maximum(tl.load(p_norm + o_i) + b_best, 0.0))
    tl.debug_barrier()
