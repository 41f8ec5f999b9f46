"""K-Means in Gram space: the update of the centers, for one sample, by one program.

A center is `c_s = sum_j m_sj x_j` with m_sj = w_j / W_s for its members. With Q = M G, the squared distance of token i
to center s is `c_s . c_s - 2 Q_si` plus a constant of the token, where `c_s . c_s = sum_i m_si Q_si`. Q is the mean of
rows of G, as pooled tokens are means of rows of X.
"""

import triton
import triton.language as tl

from .members import AHEAD, member_means, members_ahead, slot_totals, sort_members, sort_slots, weights_ahead
from .nearest import assign_nearest


@triton.jit
def _changed_slots(turn, s, z, tile):
    """Which slots [K] gained or lost a member since the last update; at first all."""
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    o_k = tl.arange(0, tile.KP)
    tl.store(s.other + o_k, (o_k * 0 + turn == 0).to(tl.int32))
    tl.debug_barrier()
    if turn > 0:
        b_new = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
        b_old = tl.load(s.history + (turn - 1) * NP + o_n, mask=o_n < z.n, other=-1)
        # Benign race: every writer stores 1.
        tl.store(s.other + b_new, o_n * 0 + 1, mask=(b_new != b_old) & (b_new >= 0))
        tl.store(s.other + b_old, o_n * 0 + 1, mask=(b_new != b_old) & (b_old >= 0))
    tl.debug_barrier()
    m_changed = (tl.load(s.other + o_k) > 0) & (o_k < z.k)
    tl.debug_barrier()
    return m_changed


@triton.jit
def update_means(turn, s, z, kind, tile):
    """Writes Q [K, ld], c.c [K] and the stamp [K] of every slot whose members changed; the others keep theirs, and so
    does a slot that lost all members.
    """
    m_changed = _changed_slots(turn, s, z, tile)
    sort_members(s.weight, s, z, tile, kind.WEIGHTED)
    slot_totals(m_changed, s, tile, kind.WEIGHTED)
    # Slots are at their own places.
    o_k = tl.arange(0, tile.KP)
    tl.store(s.place + o_k, o_k)
    tl.debug_barrier()
    slots = sort_slots(m_changed, s, tile)
    member_means(s.gram, s.product, slots, s, 0, z.ld, z.ld, 1, z.ld, z, tile, kind.WEIGHTED, True, tile.C)
    tl.debug_barrier()
    b_begin = tl.load(s.begin + o_k)
    b_count = tl.where(m_changed, tl.load(s.end + o_k) - b_begin, 0)
    b_total = tl.load(s.total + o_k)
    b_sum = tl.zeros((tile.KP,), tl.float32)
    for first in tl.range(0, tl.max(b_count, 0), AHEAD, num_stages=1):
        b_members = members_ahead(s, b_begin, first, z, tile, AHEAD)
        b_own = ()
        for step in tl.static_range(AHEAD):
            b_own += (tl.load(s.product + tl.minimum(o_k, z.k - 1) * z.ld + b_members[step]),)
        b_weight = weights_ahead(s, b_begin, first, AHEAD)
        for step in tl.static_range(AHEAD):
            b_product = b_own[step]
            if kind.WEIGHTED:
                b_product *= tl.where(b_total < 0, 1.0, b_weight[step])
            b_sum += tl.where(first + step < b_count, b_product, 0.0)
    tl.store(s.square + o_k, b_sum / tl.abs(b_total), mask=b_count > 0)
    tl.store(s.stamp + o_k, tl.zeros((tile.KP,), tl.int32) + turn, mask=b_count > 0)
    tl.debug_barrier()


@triton.jit
def assign_means(p_mask, stride_mask, s, z, kind, tile):
    """Writes every token's nearest center and its squared distance."""
    assign_nearest(s.product, s.place, p_mask, stride_mask, s, z, kind, tile, False)
