"""K-Medoids in Gram space: both halves of an iteration, for one sample, by one program.

With G = X X^T, the cost of token i as medoid of its cluster C is
`||x_i - mu||^2 = G_ii - 2 sum_{j in C} w_j G_ij / W` plus a constant of the cluster, and the distance of token i to
medoid m is `G_mm - 2 G_mi` plus a constant of the token. Neither touches the D channels.
"""

import triton
import triton.language as tl

from .nearest import nearer, store_nearest

# Costs that differ by less than the Gram matrix's rounding are tied, and the lowest index wins.
SLACK = tl.constexpr(2.0**-20)


@triton.jit
def member_costs(
    p_gram, p_weight, p_norm, p_cost, p_label, n, ld, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes `G_ii - 2 sum_{j in C} w_j G_ij / W` [N] of every token in its own cluster."""
    o_n = tl.arange(0, NP)
    b_label = tl.load(p_label + o_n, mask=o_n < n, other=-1)
    b_weight = tl.load(p_weight + o_n, mask=o_n < n, other=0.0)
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        l_i = tl.load(p_label + o_i, mask=o_i < n, other=-1)
        m_same = (l_i[:, None] == b_label[None, :]) & (l_i >= 0)[:, None]
        # Whole padded rows load as vectors; m_same leaves the padding out.
        m_g = (o_i < n)[:, None] & (o_n < ld)[None, :]
        b_g = tl.load(p_gram + o_i[:, None] * ld + o_n[None, :], mask=m_g, other=0.0)
        b_mass = tl.sum(tl.where(m_same, b_weight[None, :], 0.0), 1)
        # Weights that sum to 0 count as equal ones.
        b_equal = tl.where(b_mass > 0, 0.0, 1.0)
        b_count = tl.sum(m_same.to(tl.float32), 1)
        b_dot = tl.sum(tl.where(m_same, b_g * (b_weight[None, :] + b_equal[:, None]), 0.0), 1)
        b_mean = b_dot / tl.where(b_mass > 0, b_mass, tl.maximum(b_count, 1.0))
        tl.store(p_cost + o_i, tl.load(p_norm + o_i, mask=o_i < n, other=0.0) - 2 * b_mean, mask=o_i < n)
    tl.debug_barrier()


@triton.jit
def update_medoids(
    p_gram, p_weight, p_norm, p_cost, p_label, p_medoid, n, k, ld, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes the medoid [K] of every slot (NP for a slot without members) from labels [N]."""
    member_costs(p_gram, p_weight, p_norm, p_cost, p_label, n, ld, NP, R)
    o_n = tl.arange(0, NP)
    b_label = tl.load(p_label + o_n, mask=o_n < n, other=-1)
    b_cost = tl.load(p_cost + o_n, mask=o_n < n, other=0.0)
    b_slack = SLACK * tl.load(p_norm + o_n, mask=o_n < n, other=0.0)
    for s in range(0, k, R):
        o_s = s + tl.arange(0, R)
        m_in = b_label[None, :] == o_s[:, None]
        b_least = tl.min(tl.where(m_in, b_cost[None, :], float("inf")), 1)
        m_tied = m_in & (b_cost[None, :] <= b_least[:, None] + b_slack[None, :])
        tl.store(p_medoid + o_s, tl.min(tl.where(m_tied, o_n[None, :], NP), 1), mask=o_s < k)
    tl.debug_barrier()


@triton.jit
def assign_medoids(
    p_gram, p_norm, p_medoid, p_label, p_sqdist, b_valid, n, k, ld, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes every token's nearest medoid (label [N], -1 for an invalid token) and its squared distance."""
    o_n = tl.arange(0, NP)
    b_best = tl.full((NP,), float("inf"), tl.float32)
    b_label = tl.zeros((NP,), tl.int32)
    for s in range(0, k, R):
        o_s = s + tl.arange(0, R)
        b_m = tl.load(p_medoid + o_s, mask=o_s < k, other=NP)
        m_live = b_m < NP
        m_g = m_live[:, None] & (o_n < ld)[None, :]
        b_g = tl.load(p_gram + b_m[:, None] * ld + o_n[None, :], mask=m_g, other=0.0)
        b_norm = tl.load(p_norm + b_m, mask=m_live, other=float("inf"))
        b_score = b_norm[:, None] - 2 * b_g
        # A medoid belongs to its own cluster, even where another medoid is an equal token.
        b_score = tl.where(b_m[:, None] == o_n[None, :], float("-inf"), b_score)
        b_best, b_label = nearer(b_score, o_s, b_best, b_label)
    store_nearest(p_norm, p_label, p_sqdist, b_best, b_label, b_valid, o_n, n)
