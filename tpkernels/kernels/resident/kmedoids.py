"""K-Medoids in Gram space: the update of the medoids, for one sample, by one program.

With G = X X^T, the cost of token i as medoid of its cluster C is
`||x_i - mu||^2 = G_ii - 2 sum_{j in C} w_j G_ij / W` plus a constant of the cluster, and the distance of token i to
medoid m is `G_mm - 2 G_mi` plus a constant of the token. Neither touches the D channels.
"""

import triton
import triton.language as tl

from .members import sort_members
from .nearest import assign_nearest

# Costs that differ by less than the Gram matrix's rounding are tied, and the lowest index wins.
SLACK = tl.constexpr(2.0**-20)


@triton.jit
def member_costs(s, z, kind, tile):
    """Writes `G_ii - 2 sum_{j in C} w_j G_ij / W` [N] of every token in its own cluster, after `sort_members`."""
    o_n = tl.arange(0, tile.NP)
    b_label = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
    b_begin = tl.load(s.begin + b_label, mask=b_label >= 0, other=0)
    b_count = tl.load(s.end + b_label, mask=b_label >= 0, other=0) - b_begin
    b_sum = tl.zeros((tile.NP,), tl.float32)
    b_dot = tl.zeros((tile.NP,), tl.float32)
    b_mass = tl.zeros((tile.NP,), tl.float32)
    for step in tl.range(0, tl.max(b_count, 0), num_stages=1):
        m_in = step < b_count
        b_member = tl.load(s.order + b_begin + step, mask=m_in, other=0)
        b_g = tl.load(s.gram + b_member * z.ld + o_n, mask=m_in, other=0.0)
        b_sum += b_g
        if kind.WEIGHTED:
            b_weight = tl.load(s.weight + b_member, mask=m_in, other=0.0)
            b_dot += b_weight * b_g
            b_mass += b_weight
    # Weights that sum to 0 count as equal ones.
    m_equal = b_mass == 0
    b_mean = tl.where(m_equal, b_sum, b_dot) / tl.where(m_equal, tl.maximum(b_count, 1).to(tl.float32), b_mass)
    tl.store(s.cost + o_n, tl.load(s.norm + o_n, mask=o_n < z.n, other=0.0) - 2 * b_mean, mask=o_n < z.n)
    tl.debug_barrier()


@triton.jit
def update_medoids(s, z, kind, tile):
    """Writes the medoid [K] of every slot (NP for a slot without members) and its norm (+inf), from labels [N]."""
    NP: tl.constexpr = tile.NP
    sort_members(s, z, tile)
    member_costs(s, z, kind, tile)
    o_k = tl.arange(0, tile.KP)
    b_begin = tl.load(s.begin + o_k, mask=o_k < z.k, other=0)
    b_count = tl.load(s.end + o_k, mask=o_k < z.k, other=0) - b_begin
    most = tl.max(b_count, 0)
    b_least = tl.full((tile.KP,), float("inf"), tl.float32)
    for step in tl.range(0, most, num_stages=1):
        b_token = tl.load(s.order + b_begin + step, mask=step < b_count, other=0)
        b_least = tl.minimum(b_least, tl.load(s.cost + b_token, mask=step < b_count, other=float("inf")))
    b_medoid = tl.full((tile.KP,), NP, tl.int32)
    for step in tl.range(0, most, num_stages=1):
        m_in = step < b_count
        b_token = tl.load(s.order + b_begin + step, mask=m_in, other=0)
        b_cost = tl.load(s.cost + b_token, mask=m_in, other=float("inf"))
        b_slack = SLACK * tl.load(s.norm + b_token, mask=m_in, other=0.0)
        b_medoid = tl.where(m_in & (b_cost <= b_least + b_slack), tl.minimum(b_medoid, b_token), b_medoid)
    tl.store(s.medoid + o_k, b_medoid, mask=o_k < z.k)
    b_norm = tl.load(s.norm + b_medoid, mask=b_medoid < NP, other=float("inf"))
    tl.store(s.square + o_k, b_norm, mask=o_k < z.k)
    tl.debug_barrier()


@triton.jit
def assign_medoids(p_mask, stride_mask, s, z, kind, tile):
    """Writes every token's nearest medoid and its squared distance."""
    assign_nearest(s.gram, s.medoid, p_mask, stride_mask, s, z, kind, tile, True)
    # A medoid belongs to its own cluster, even where another medoid is an equal token.
    o_k = tl.arange(0, tile.KP)
    b_medoid = tl.load(s.medoid + o_k, mask=o_k < z.k, other=tile.NP)
    tl.store(s.label + b_medoid, o_k, mask=b_medoid < z.n)
    tl.store(s.cost + b_medoid, tl.zeros((tile.KP,), tl.float32), mask=b_medoid < z.n)
    tl.debug_barrier()
