"""Exact Ward agglomeration of one sample by one program: rounds in which all mutual nearest neighbors merge.

The cost of merging clusters a and b is `c_ab = m_a m_b / (m_a + m_b) ||mu_a - mu_b||^2` (Ward, 1963). It is reducible,
so pairs that are each other's nearest merge at once and the dendrogram is the greedy one. Where p = (a, b) and
q = (c, e) merge in the same round,

    c_pq = (sum_{i in p, j in q} (m_i + m_j) c_ij - m_q c_ab - m_p c_ce) / (m_p + m_q)

which is Lance and Williams' (1967) step for rows and for columns in one; of a q that does not merge the terms of e drop
out. A cluster lies in the row and column of its lowest token. The entry of two clusters is computed once and stored
twice, so that the matrix is symmetric to the last bit, and only the rows of merged clusters are computed.

A row's nearest neighbor, ties by the lower i XOR j, is looked for again where it merged. Others keep theirs: by
reducibility no new cluster is nearer. Where one is as near, or nearer by a rounding, a round may have no mutual pair:
then all rows are scanned, after which the cheapest pair is mutual.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .codes import CUT_COUNT
from .costs import BIG, BLOCKS, INF, first_costs, nearer, of_columns, over, store_nearest
from .cut import cut_labels, highest_made, round_limit, wanted_height
from .scratch import vector_part


@triton.jit
def _look(j, o_r, b_least, b_block, s, z, C: tl.constexpr):
    """`nearer` for block j of rows o_r."""
    # A cluster that is gone may have left a negative number.
    o_c = ((o_r // C ^ j) * C)[:, None] + tl.arange(0, C)[None, :]
    b_cost = tl.load(s.cost_matrix + o_r[:, None] * z.ld + o_c).to(tl.int32, bitcast=True)
    return nearer((b_cost | tl.load(s.gone + o_c)) & BIG, b_least, b_block, j)


@triton.jit
def _scan(count, s, z, tile):
    """Looks for the nearest neighbors of the rows scan[..count] among the clusters that are there."""
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    # Neither loop stores what it loads, so that rows may be copied ahead: whole ones where they are short, else blocks.
    SHORT: tl.constexpr = tile.NP <= BLOCKS * C
    for r in tl.range(0, count, R, num_stages=3 if SHORT else 1):
        m_r = r + tl.arange(0, R) < count
        o_r = tl.load(s.scan + r + tl.arange(0, R), mask=m_r, other=0)
        b_least = tl.full((R, C), INF, tl.int32)
        b_block = tl.zeros((R, C), tl.int32)
        if SHORT:
            for j in tl.static_range(tile.NP // C):
                b_least, b_block = _look(j, o_r, b_least, b_block, s, z, C)
        else:
            for j in tl.range(0, tile.NP // C, num_stages=3):
                b_least, b_block = _look(j, o_r, b_least, b_block, s, z, C)
        store_nearest(s, b_least, b_block, o_r, m_r, C)
    tl.debug_barrier()


@triton.jit
def _merge_pairs(turn, limit, s, z, tile):
    """Finds the mutual pairs below the limit and records their merges; returns how many, and how many rows to scan.

    Writes the pairs (the tokens of both clusters, their masses before, and what the merge costs), each cluster's mass
    now, the rows to scan, and of every column its mass before: negative where it merges, infinite where nothing is.
    """
    V: tl.constexpr = vector_part(tile.NP)
    pairs = 0
    for first in tl.range(0, tile.NP, V, num_stages=1):
        o_n = first + tl.arange(0, V)
        m_live = tl.load(s.gone + o_n) == 0
        b_least = tl.load(s.least + o_n, mask=m_live, other=float("inf"))
        b_near = tl.load(s.near + o_n, mask=m_live, other=0)
        b_below = tl.load(s.below + o_n)
        m_open = m_live & (b_least < limit)
        m_pair = m_open & (tl.load(s.near + b_near, mask=m_open, other=-1) == o_n)
        b_mass = tl.load(s.mass + o_n)
        b_joined = tl.load(s.mass + b_near, mask=m_pair, other=0.0)
        # A cluster of an earlier block has the height already, which changes no maximum.
        b_made = tl.maximum(b_least, tl.maximum(b_below, tl.load(s.below + b_near, mask=m_pair, other=0.0)))
        m_first = m_pair & (o_n < b_near)
        m_gone = m_pair & (o_n > b_near)
        b_place = pairs + tl.cumsum(m_first.to(tl.int32), 0)
        pairs = tl.max(b_place, 0)
        # Every lane has loaded the old state before any lane overwrites it.
        tl.debug_barrier()
        tl.store(s.first + b_place - 1, o_n, mask=m_first)
        tl.store(s.second + b_place - 1, b_near, mask=m_first)
        tl.store(s.first_mass + b_place - 1, b_mass, mask=m_first)
        tl.store(s.second_mass + b_place - 1, b_joined, mask=m_first)
        tl.store(s.gap + b_place - 1, b_least, mask=m_first)
        tl.store(s.signed + o_n, tl.where(m_pair, -b_mass, tl.where(m_live, b_mass, float("inf"))))
        tl.store(s.mass + o_n, b_mass + b_joined, mask=m_first)
        tl.store(s.below + o_n, b_made, mask=m_first)
        tl.store(s.gone + o_n, tl.full((V,), INF, tl.int32), mask=m_gone)
        tl.store(s.parent + o_n, b_near, mask=m_gone)
        tl.store(s.height + o_n, b_made, mask=m_gone)
        tl.store(s.turn + o_n, tl.zeros((V,), tl.int32) + turn, mask=m_gone)
        tl.debug_barrier()
    rows = 0
    for first in tl.range(0, tile.NP, V, num_stages=1):
        o_n = first + tl.arange(0, V)
        m_live = tl.load(s.gone + o_n) == 0
        b_near = tl.load(s.near + o_n, mask=m_live, other=0)
        m_scan = m_live & (tl.load(s.signed + b_near, mask=m_live, other=0.0) < 0)
        m_scan = tl.where(pairs == 0, m_live, m_scan)
        b_place = rows + tl.cumsum(m_scan.to(tl.int32), 0)
        rows = tl.max(b_place, 0)
        tl.store(s.scan + b_place - 1, o_n, mask=m_scan)
        if V < tile.NP:
            tl.debug_barrier()
    tl.debug_barrier()
    return pairs, rows


@triton.jit
def _merge_costs(pairs, s, z, tile):
    """Writes the costs of the clusters that merge with all others, as rows and as columns."""
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    U: tl.constexpr = BLOCKS if tile.NP > C else 1
    for r in range(0, pairs, R):
        o_r = r + tl.arange(0, R)
        m_r = (o_r < pairs)[:, None]
        o_a = tl.load(s.first + o_r, mask=o_r < pairs, other=0)
        o_b = tl.load(s.second + o_r, mask=o_r < pairs, other=0)
        b_a = tl.load(s.first_mass + o_r)[:, None]
        b_b = tl.load(s.second_mass + o_r)[:, None]
        b_gap = tl.load(s.gap + o_r)[:, None]
        p_a = s.cost_matrix + o_a[:, None] * z.ld
        p_b = s.cost_matrix + o_b[:, None] * z.ld
        for c in tl.range(0, z.n, U * C, num_stages=1):
            b_cost = ()
            m_column = ()
            for block in tl.static_range(U):
                o_c = tl.arange(0, C) + c + block * C
                b_signed = of_columns(s.signed, o_c, R)
                b_c = tl.abs(b_signed)
                b_sum = (b_a + b_c) * tl.load(p_a + o_c[None, :]) + (b_b + b_c) * tl.load(p_b + o_c[None, :])
                b_sum -= b_c * b_gap
                # The numerator of a cluster that merges in this round is a part of its pair's.
                b_new = tl.where(b_signed < 0, b_sum, tl.maximum(b_sum * over(b_a + b_b + b_c), 0.0))
                b_cost += (b_new,)
                m_column += (m_r & (b_signed > 0) & (b_c < float("inf")),)
            tl.debug_barrier()
            for block in tl.static_range(U):
                o_c = tl.arange(0, C) + c + block * C
                tl.store(p_a + o_c[None, :], b_cost[block], mask=m_r & (o_c < z.ld)[None, :])
                p_column = s.cost_matrix + o_c[None, :] * z.ld + o_a[:, None]
                tl.store(p_column, b_cost[block], mask=m_column[block])
            tl.debug_barrier()
    if pairs > 1:
        _merge_pair_costs(pairs, s, z, tile)


@triton.jit
def _merge_pair_costs(pairs, s, z, tile):
    """Writes the costs of clusters that merge with each other, from the numerators in the rows of the lower ones."""
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C // 2 if tile.C > 16 else tile.C
    for r in range(0, pairs, R):
        o_r = r + tl.arange(0, R)
        o_a = tl.load(s.first + o_r, mask=o_r < pairs, other=0)
        b_a = (tl.load(s.first_mass + o_r) + tl.load(s.second_mass + o_r))[:, None]
        p_a = s.cost_matrix + o_a[:, None] * z.ld
        # Of two clusters the row of the lower one has their numerator.
        for q in range(r // C * C, pairs, C):
            o_q = tl.arange(0, C) + q
            m_q = o_q < pairs
            o_c = tl.load(s.first + o_q, mask=m_q, other=0)
            o_e = tl.load(s.second + o_q, mask=m_q, other=0)
            b_c = (tl.load(s.first_mass + o_q) + tl.load(s.second_mass + o_q))[None, :]
            b_gap = tl.load(s.gap + o_q)[None, :]
            m_at = (o_r[:, None] < o_q[None, :]) & m_q[None, :]
            b_sum = tl.load(p_a + o_c[None, :]) + tl.load(p_a + o_e[None, :])
            b_cost = tl.maximum((b_sum - b_a * b_gap) * over(b_a + b_c), 0.0)
            tl.debug_barrier()
            tl.store(p_a + o_c[None, :], b_cost, mask=m_at)
            tl.store(s.cost_matrix + o_c[None, :] * z.ld + o_a[:, None], b_cost, mask=m_at)
            tl.debug_barrier()


@triton.jit
def ward_rounds(p_mask, stride_mask, count, most, weighs, bound, scale, s, z, kind, tile):
    """Merges until what a cut at `most` clusters, or by value, makes is certain; returns the number of rounds and what
    the cut compares with.

    Masses are the weights, floored at 1e-6 of the largest; where `weighs` is false tokens count equally. scale: what
    a height is multiplied by to be returned.
    """
    o_n = tl.arange(0, tile.NP)
    b_valid = valid_tokens(p_mask, o_n, z.n, stride_mask, kind.MASKED)
    b_mass = tl.load(s.weight + o_n, mask=b_valid, other=0.0)
    # Masses add up to 1 at most, and costs times masses overflow no sooner than norms do.
    b_mass = tl.where(weighs, tl.maximum(b_mass, 1e-6), 1.0) * (1.0 / tile.NP)
    tl.store(s.mass + o_n, b_mass)
    tl.store(s.gone + o_n, tl.where(b_valid, 0, INF))
    tl.store(s.below + o_n, tl.zeros((tile.NP,), tl.float32))
    tl.store(s.parent + o_n, o_n)
    tl.store(s.height + o_n, tl.full((tile.NP,), float("inf"), tl.float32))
    tl.store(s.turn + o_n, tl.zeros((tile.NP,), tl.int32))
    tl.debug_barrier()
    first_costs(s, z, kind, tile)
    wanted = count - most
    merged = 0
    turn = 0
    limit = float("inf")
    highest = bound
    if kind.CUT != CUT_COUNT:
        highest = highest_made(bound, s, z, kind, tile)
        limit = round_limit(wanted, merged, highest, scale, s, z, kind, tile)
    # Read again, since a vector that is kept over the first costs leaves those too few registers.
    b_valid = valid_tokens(p_mask, o_n, z.n, stride_mask, kind.MASKED)
    least = tl.min(tl.load(s.least + o_n, mask=b_valid, other=float("inf")), 0)
    # Of two rounds without a pair one would have scanned all rows.
    while (least < limit) & (turn < 2 * z.n):
        turn += 1
        pairs, rows = _merge_pairs(turn, limit, s, z, tile)
        _merge_costs(pairs, s, z, tile)
        _scan(rows, s, z, tile)
        merged += pairs
        if kind.CUT != CUT_COUNT:
            limit = round_limit(wanted, merged, highest, scale, s, z, kind, tile)
        elif merged >= wanted:
            limit = wanted_height(wanted, s, z, tile)
        m_live = tl.load(s.gone + o_n) == 0
        least = tl.min(tl.load(s.least + o_n, mask=m_live, other=float("inf")), 0)
    tl.debug_barrier()
    return turn, highest


@triton.jit
def ward_labels(p_heights, p_mask, stride_mask, count, most, weighs, bound, scale, s, z, kind, tile):
    """Writes labels [N] of Ward's clusters, in the order of their lowest tokens, of which there are `most`, or fewer
    where values cut; returns the number of rounds and of clusters.
    """
    scale = scale * tile.NP
    turn, highest = ward_rounds(p_mask, stride_mask, count, most, weighs, bound, scale, s, z, kind, tile)
    left = cut_labels(p_heights, p_mask, stride_mask, count, most, highest, scale, s, z, kind, tile)
    return turn, left
