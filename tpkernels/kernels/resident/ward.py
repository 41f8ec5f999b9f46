"""Exact Ward agglomeration of one sample by one program: rounds in which all mutual nearest neighbours merge.

The cost of merging clusters a and b is `m_a m_b / (m_a + m_b) d_ab` with d the squared distance of their means (Ward,
1963). It is reducible, so pairs that are each other's nearest merge at once and the dendrogram is the greedy one.
Merging p = (a, b) and q = (c, e) at once gives, with shares `u_a = m_a / (m_a + m_b)`,

    d_pq = u_a u_c d_ac + u_b u_e d_be + (u_a u_e d_ae + u_b u_c d_bc) - (u_a u_b d_ab + u_c u_e d_ce)

which is Lance and Williams' (1967) step for rows and for columns in one, on distances instead of costs. The sum is
taken so that it is symmetric to the last bit: both clusters of a pair hold the same distance, and the cheapest pair,
ties by (cost, i XOR j) of lowest tokens, is always mutual. Were it not, a round could merge nothing and the loop would
not end.

Live clusters are in the order of their lowest tokens, and every round packs their distances [M, M] into the front of
the same scratch, so that a round costs M^2 (docs/kernels.md counts all rounds). Row r of the new matrix depends on rows
r.. of the old one, so blocks of rows are rewritten in order: read, barrier, write, barrier.
"""

import triton
import triton.language as tl


@triton.jit
def _nearest(
    p_least, p_near, b_d, o_r, m_r, b_mass_r, b_rep_r, o_s, b_mass, b_rep, m_s,
):  # fmt: skip
    """Writes the least merge cost of rows o_r and the lowest token of the cluster at that cost, ties by XOR."""
    b_cost = b_mass_r[:, None] * b_mass[None, :] / (b_mass_r[:, None] + b_mass[None, :]) * b_d
    b_cost = tl.where(m_s[None, :] & (o_r[:, None] != o_s[None, :]), b_cost, float("inf"))
    b_least = tl.min(b_cost, 1)
    b_tie = tl.where(b_cost == b_least[:, None], b_rep_r[:, None] ^ b_rep[None, :], 2147483647)
    tl.store(p_least + o_r, b_least, mask=m_r)
    tl.store(p_near + o_r, tl.min(b_tie, 1) ^ b_rep_r, mask=m_r)


@triton.jit
def first_distances(
    p_gram, p_norm, p_sqdist, p_mass, p_rep, p_least, p_near, live, ld, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes the squared distances [M, ld] of the M tokens p_rep from the Gram matrix, and their nearest neighbours.

    p_sqdist may be p_gram.
    """
    o_s = tl.arange(0, NP)
    m_s = o_s < live
    b_rep = tl.load(p_rep + o_s, mask=m_s, other=0)
    b_mass = tl.load(p_mass + o_s, mask=m_s, other=1.0)
    b_norm = tl.load(p_norm + b_rep, mask=m_s, other=0.0)
    for r in range(0, live, R):
        o_r = r + tl.arange(0, R)
        m_r = o_r < live
        b_rep_r = tl.load(p_rep + o_r, mask=m_r, other=0)
        b_mass_r = tl.load(p_mass + o_r, mask=m_r, other=1.0)
        b_norm_r = tl.load(p_norm + b_rep_r, mask=m_r, other=0.0)
        m_d = m_r[:, None] & m_s[None, :]
        b_g = tl.load(p_gram + b_rep_r[:, None] * ld + b_rep[None, :], mask=m_d, other=0.0)
        # Norms are the matrix's own diagonal, so that equal tokens are at distance 0 to the last bit.
        b_d = tl.maximum(b_norm_r[:, None] + b_norm[None, :] - 2 * b_g, 0.0)
        tl.debug_barrier()
        # Whole padded rows store as vectors; entries beyond the live clusters are masked where they are read.
        tl.store(p_sqdist + o_r[:, None] * ld + o_s[None, :], b_d, mask=m_r[:, None] & (o_s < ld)[None, :])
        _nearest(p_least, p_near, b_d, o_r, m_r, b_mass_r, b_rep_r, o_s, b_mass, b_rep, m_s)
        tl.debug_barrier()


@triton.jit
def _merged_distances(
    p_sqdist, p_mass, p_rep, p_one, p_two, p_share, p_inner, p_least, p_near, live, ld,
    NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes the distances [M, ld] of the M clusters p_rep from the old rows p_one and p_two, and neighbours."""
    o_s = tl.arange(0, NP)
    m_s = o_s < live
    b_rep = tl.load(p_rep + o_s, mask=m_s, other=0)
    b_mass = tl.load(p_mass + o_s, mask=m_s, other=1.0)
    b_one = tl.load(p_one + o_s, mask=m_s, other=0)
    b_two = tl.load(p_two + o_s, mask=m_s, other=0)
    b_u = tl.load(p_share + o_s, mask=m_s, other=1.0)
    b_inner = tl.load(p_inner + o_s, mask=m_s, other=0.0)
    for r in range(0, live, R):
        o_r = r + tl.arange(0, R)
        m_r = o_r < live
        b_rep_r = tl.load(p_rep + o_r, mask=m_r, other=0)
        b_mass_r = tl.load(p_mass + o_r, mask=m_r, other=1.0)
        b_one_r = tl.load(p_one + o_r, mask=m_r, other=0)[:, None] * ld
        b_two_r = tl.load(p_two + o_r, mask=m_r, other=0)[:, None] * ld
        b_u_r = tl.load(p_share + o_r, mask=m_r, other=1.0)[:, None]
        b_inner_r = tl.load(p_inner + o_r, mask=m_r, other=0.0)
        m_d = m_r[:, None] & m_s[None, :]
        b_d = b_u_r * b_u[None, :] * tl.load(p_sqdist + b_one_r + b_one[None, :], mask=m_d, other=0.0)
        # A cluster that did not merge in this round has share 1 and no second part.
        m_row = m_d & (b_u_r < 1)
        m_col = m_d & (b_u < 1)[None, :]
        b_both = tl.load(p_sqdist + b_two_r + b_two[None, :], mask=m_row & m_col, other=0.0)
        b_d += (1 - b_u_r) * (1 - b_u)[None, :] * b_both
        b_row = (1 - b_u_r) * b_u[None, :] * tl.load(p_sqdist + b_two_r + b_one[None, :], mask=m_row, other=0.0)
        b_col = b_u_r * (1 - b_u)[None, :] * tl.load(p_sqdist + b_one_r + b_two[None, :], mask=m_col, other=0.0)
        # Ordered by triangle, so that an entry and its mirror image add the same two numbers in the same order.
        m_low = o_r[:, None] > o_s[None, :]
        b_d += tl.where(m_low, b_row, b_col) + tl.where(m_low, b_col, b_row)
        b_d = tl.maximum(b_d - (b_inner_r[:, None] + b_inner[None, :]), 0.0)
        tl.debug_barrier()
        # Whole padded rows store as vectors; entries beyond the live clusters are masked where they are read.
        tl.store(p_sqdist + o_r[:, None] * ld + o_s[None, :], b_d, mask=m_r[:, None] & (o_s < ld)[None, :])
        _nearest(p_least, p_near, b_d, o_r, m_r, b_mass_r, b_rep_r, o_s, b_mass, b_rep, m_s)
        tl.debug_barrier()


@triton.jit
def _merge_round(
    p_sqdist, p_mass, p_rep, p_below, p_least, p_near, p_slot, p_one, p_two, p_share, p_inner,
    p_parent, p_height, p_turn, live, turn, limit, ld, NP: tl.constexpr,
):  # fmt: skip
    """Merges mutual pairs below the limit, records merges by token, packs live clusters; returns how many those are."""
    o_s = tl.arange(0, NP)
    m_s = o_s < live
    b_rep = tl.load(p_rep + o_s, mask=m_s, other=0)
    tl.store(p_slot + b_rep, o_s, mask=m_s)
    tl.debug_barrier()
    b_mass = tl.load(p_mass + o_s, mask=m_s, other=1.0)
    b_least = tl.load(p_least + o_s, mask=m_s, other=float("inf"))
    b_below = tl.load(p_below + o_s, mask=m_s, other=0.0)
    b_near = tl.load(p_near + o_s, mask=m_s, other=0)
    m_open = m_s & (b_least < limit)
    b_other = tl.load(p_slot + b_near, mask=m_open, other=0)
    m_pair = m_open & (tl.load(p_near + b_other, mask=m_open, other=-1) == b_rep)
    m_gone = m_pair & (b_near < b_rep)
    m_kept = m_s & (m_gone == 0)
    b_joined = tl.load(p_mass + b_other, mask=m_pair, other=0.0)
    b_made = tl.maximum(b_least, tl.maximum(b_below, tl.load(p_below + b_other, mask=m_pair, other=0.0)))
    b_d = tl.load(p_sqdist + o_s * ld + b_other, mask=m_pair, other=0.0)
    b_u = tl.where(m_pair, b_mass / (b_mass + b_joined), 1.0)
    b_place = tl.cumsum(m_kept.to(tl.int32), 0) - 1
    # Every lane has loaded the old state before any lane overwrites it.
    tl.debug_barrier()
    tl.store(p_parent + b_rep, b_near, mask=m_gone)
    tl.store(p_height + b_rep, b_made, mask=m_gone)
    tl.store(p_turn + b_rep, tl.zeros((NP,), tl.int32) + turn, mask=m_gone)
    tl.store(p_rep + b_place, b_rep, mask=m_kept)
    tl.store(p_mass + b_place, b_mass + b_joined, mask=m_kept)
    tl.store(p_below + b_place, tl.where(m_pair, b_made, b_below), mask=m_kept)
    tl.store(p_one + b_place, o_s, mask=m_kept)
    tl.store(p_two + b_place, b_other, mask=m_kept)
    tl.store(p_share + b_place, b_u, mask=m_kept)
    tl.store(p_inner + b_place, b_u * (1 - b_u) * b_d, mask=m_kept)
    tl.debug_barrier()
    return tl.sum(m_kept.to(tl.int32), 0)


@triton.jit
def _wanted_height(p_height, wanted, n, NP: tl.constexpr, R: tl.constexpr):
    """The wanted-th lowest height of the merges made so far; +inf while there are fewer."""
    o_n = tl.arange(0, NP)
    b_height = tl.load(p_height + o_n, mask=o_n < n, other=float("inf"))
    b_found = tl.full((R,), float("-inf"), tl.float32)
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        b_h = tl.load(p_height + o_i, mask=o_i < n, other=float("inf"))
        m_before = (b_height[None, :] < b_h[:, None]) | (
            (b_height[None, :] == b_h[:, None]) & (o_n[None, :] < o_i[:, None])
        )
        b_found = tl.where(tl.sum(m_before.to(tl.int32), 1) == wanted - 1, b_h, b_found)
    return tl.max(b_found, 0)


@triton.jit
def _cut(
    p_parent, p_height, p_turn, p_label, p_other, p_heights, b_valid, n, k, scale, NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes labels [N] and the ascending heights [N - 1] of the merges below the cut, +inf for the others.

    Roots are the k entries of greatest height, ties to the later merge; every other token has its parent's root.
    """
    o_n = tl.arange(0, NP)
    m_n = o_n < n
    # Invalid tokens rank below every merge, clusters that never merged into another (height +inf) above.
    b_height = tl.where(b_valid, tl.load(p_height + o_n, mask=m_n, other=0.0), float("-inf"))
    b_turn = tl.load(p_turn + o_n, mask=m_n, other=0)
    b_turn = tl.where(b_height == float("inf"), 2 * NP, b_turn) * NP + o_n
    tl.debug_barrier()
    tl.store(p_label + o_n, b_turn, mask=m_n)
    tl.store(p_height + o_n, b_height, mask=m_n)
    tl.debug_barrier()
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        m_i = o_i < n
        b_h = tl.load(p_height + o_i, mask=m_i, other=float("-inf"))
        b_t = tl.load(p_label + o_i, mask=m_i, other=0)
        m_equal = b_height[None, :] == b_h[:, None]
        m_above = (b_height[None, :] > b_h[:, None]) | (m_equal & (b_turn[None, :] > b_t[:, None]))
        m_root = tl.sum((m_above & m_n[None, :]).to(tl.int32), 1) < k
        b_up = tl.load(p_parent + o_i, mask=m_i, other=0)
        tl.store(p_other + o_i, tl.where(m_root, o_i, b_up), mask=m_i)
    tl.debug_barrier()
    b_owner = tl.load(p_other + o_n, mask=m_n, other=0)
    m_root = m_n & (b_owner == o_n) & b_valid
    # Pointer jumping: every turn doubles how many parents up an owner lies.
    reach = 1
    while reach < n:
        b_owner = tl.load(p_other + b_owner)
        tl.debug_barrier()
        tl.store(p_other + o_n, b_owner, mask=m_n)
        tl.debug_barrier()
        reach *= 2
    # A root is the lowest token of its cluster, so a prefix count of roots numbers the clusters.
    tl.store(p_turn + o_n, tl.cumsum(m_root.to(tl.int32), 0) - 1, mask=m_n)
    b_made = tl.where(m_root | (b_valid == 0), float("inf"), b_height)
    tl.store(p_height + o_n, b_made, mask=m_n)
    tl.debug_barrier()
    # Merges whose costs overflowed never happen, which leaves more than k roots.
    b_label = tl.minimum(tl.load(p_turn + b_owner, mask=m_n, other=-1), k - 1)
    tl.store(p_label + o_n, tl.where(b_valid, b_label, -1), mask=m_n)
    for i in range(0, n, R):
        o_i = i + tl.arange(0, R)
        b_h = tl.load(p_height + o_i, mask=o_i < n, other=float("inf"))
        m_equal = (b_made[None, :] == b_h[:, None]) & (o_n[None, :] < o_i[:, None])
        m_before = (b_made[None, :] < b_h[:, None]) | m_equal
        b_place = tl.sum((m_before & m_n[None, :]).to(tl.int32), 1)
        tl.store(p_heights + b_place, b_h * scale, mask=(o_i < n) & (b_place < n - 1))
    tl.debug_barrier()


@triton.jit
def ward_labels(
    p_gram, p_sqdist, p_norm, p_weight, p_state, p_marks, p_label, p_heights, b_valid, n, k, count, weighs, scale, ld,
    NP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Writes labels [N] of Ward's k clusters, in the order of their lowest tokens; returns the number of rounds.

    p_state and p_marks are scratch, [6, NP] floats and [8, NP] ints. Masses are the weights, floored at 1e-6 of the
    largest; where `weighs` is false tokens count equally.
    """
    p_mass, p_below, p_least, p_share, p_inner, p_height = (
        p_state, p_state + NP, p_state + 2 * NP, p_state + 3 * NP, p_state + 4 * NP, p_state + 5 * NP,
    )  # fmt: skip
    p_rep, p_near, p_slot, p_one = p_marks, p_marks + NP, p_marks + 2 * NP, p_marks + 3 * NP
    p_two, p_parent, p_turn, p_other = p_marks + 4 * NP, p_marks + 5 * NP, p_marks + 6 * NP, p_marks + 7 * NP
    o_n = tl.arange(0, NP)
    m_n = o_n < n
    b_mass = tl.load(p_weight + o_n, mask=m_n, other=0.0)
    b_mass = tl.where(weighs, tl.maximum(b_mass, 1e-6), 1.0)
    b_place = tl.cumsum(b_valid.to(tl.int32), 0) - 1
    tl.store(p_mass + b_place, b_mass, mask=b_valid)
    tl.store(p_rep + b_place, o_n, mask=b_valid)
    tl.store(p_below + o_n, tl.zeros((NP,), tl.float32))
    tl.store(p_parent + o_n, o_n)
    tl.store(p_height + o_n, tl.full((NP,), float("inf"), tl.float32))
    tl.store(p_turn + o_n, tl.zeros((NP,), tl.int32))
    tl.debug_barrier()
    first_distances(p_gram, p_norm, p_sqdist, p_mass, p_rep, p_least, p_near, count, ld, NP, R)
    live = count
    turn = 0
    limit = float("inf")
    least = tl.min(tl.load(p_least + o_n, mask=o_n < live, other=float("inf")), 0)
    while (least < limit) & (turn < n):
        turn += 1
        live = _merge_round(
            p_sqdist, p_mass, p_rep, p_below, p_least, p_near, p_slot, p_one, p_two, p_share, p_inner,
            p_parent, p_height, p_turn, live, turn, limit, ld, NP,
        )  # fmt: skip
        _merged_distances(p_sqdist, p_mass, p_rep, p_one, p_two, p_share, p_inner, p_least, p_near, live, ld, NP, R)
        if count - live >= count - k:
            limit = _wanted_height(p_height, count - k, n, NP, R)
        least = tl.min(tl.load(p_least + o_n, mask=o_n < live, other=float("inf")), 0)
    tl.debug_barrier()
    _cut(p_parent, p_height, p_turn, p_label, p_other, p_heights, b_valid, n, k, scale, NP, R)
    return turn
