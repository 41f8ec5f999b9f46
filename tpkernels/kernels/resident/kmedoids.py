"""K-Medoids in Gram space: the update of the medoids, for one sample, by one program.

With G = X X^T, the cost of token i as medoid of its cluster C is
`||x_i - mu||^2 = G_ii - 2 sum_{j in C} w_j G_ij / W` plus a constant of the cluster, and the distance of token i to
medoid m is `G_mm - 2 G_mi` plus a constant of the token. Neither touches the D channels.
"""

import triton
import triton.language as tl

from .members import sort_members
from .nearest import assign_nearest
from .order import ordered
from .scratch import vector_part

# Costs that differ by less than the Gram matrix's rounding are tied, and the lowest index wins.
SLACK = tl.constexpr(2.0**-20)


@triton.jit
def member_costs(s, z, kind, tile):
    """Writes `G_ii - 2 sum_{j in C} w_j G_ij / W` [N] of every token in its own cluster, after `sort_members`."""
    V: tl.constexpr = vector_part(tile.NP)
    for first in tl.range(0, tile.NP, V, num_stages=1):
        o_n = first + tl.arange(0, V)
        b_label = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
        b_begin = tl.load(s.begin + b_label, mask=b_label >= 0, other=0)
        b_count = tl.load(s.end + b_label, mask=b_label >= 0, other=0) - b_begin
        b_sum = tl.zeros((V,), tl.float32)
        b_dot = tl.zeros((V,), tl.float32)
        b_mass = tl.zeros((V,), tl.float32)
        # Nothing is stored in this loop, so that members may be loaded ahead.
        for step in tl.range(0, tl.max(b_count, 0), num_stages=3):
            m_in = step < b_count
            b_member = tl.load(s.order + b_begin + step, mask=m_in, other=0)
            b_g = tl.load(s.gram + b_member * z.ld + o_n, mask=m_in, other=0.0)
            b_sum += b_g
            if kind.WEIGHTED:
                b_weight = tl.load(s.ordered_weight + b_begin + step, mask=m_in, other=0.0)
                b_dot += b_weight * b_g
                b_mass += b_weight
        # Weights that sum to 0 count as equal ones.
        m_equal = b_mass == 0
        b_mean = tl.where(m_equal, b_sum, b_dot) / tl.where(m_equal, tl.maximum(b_count, 1).to(tl.float32), b_mass)
        tl.store(s.cost + o_n, tl.load(s.norm + o_n, mask=o_n < z.n, other=0.0) - 2 * b_mean, mask=o_n < z.n)
    tl.debug_barrier()


@triton.jit
def update_medoids(s, z, kind, tile):
    """Writes the medoid [K] of every slot (NP for a slot without members) and its norm (+inf), from labels [N].

    Minima over a slot's members are atomic ones of integers, which are the same in any order.
    """
    NP: tl.constexpr = tile.NP
    o_k = tl.arange(0, tile.KP)
    tl.store(s.bound + o_k, tl.full((tile.KP,), 0x7FFFFFFF, tl.int32))
    tl.store(s.medoid + o_k, tl.full((tile.KP,), NP, tl.int32))
    sort_members(s.weight, s, z, tile, kind.WEIGHTED)
    member_costs(s, z, kind, tile)
    V: tl.constexpr = vector_part(NP)
    for first in tl.range(0, NP, V, num_stages=1):
        o_n = first + tl.arange(0, V)
        b_label = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
        b_cost = tl.load(s.cost + o_n)
        tl.atomic_min(s.bound + b_label, ordered(b_cost.to(tl.int32, bitcast=True)), mask=b_label >= 0, sem="relaxed")
    tl.debug_barrier()
    for first in tl.range(0, NP, V, num_stages=1):
        o_n = first + tl.arange(0, V)
        b_label = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
        b_least = ordered(tl.load(s.bound + b_label, mask=b_label >= 0, other=0)).to(tl.float32, bitcast=True)
        m_tied = tl.load(s.cost + o_n) <= b_least + SLACK * tl.load(s.norm + o_n)
        tl.atomic_min(s.medoid + b_label, o_n, mask=(b_label >= 0) & m_tied, sem="relaxed")
    tl.debug_barrier()
    b_medoid = tl.load(s.medoid + o_k)
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
