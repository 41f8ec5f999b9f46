"""Where Ward's dendrogram is cut: at a number of clusters, or by value, below a height or a share of the error.

A cut by value makes the mergers that a number of clusters takes, and those beyond whose heights are at most that of a
distance (`distance^2 / 2`), or whose sum with all lower ones is at most a share of the error of one cluster.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .codes import CUT_COUNT, CUT_DISTANCE, CUT_ERROR
from .costs import BIG, total_error
from .order import ascending

# Rounds go on a little above the cut, so that rounding ends none too early: what is above is not cut.
SLACK, TINY = tl.constexpr(1 + 2.0**-16), tl.constexpr(2.0**-126)


@triton.jit
def _at(b_sorted, place, o_n):
    """The entry at a place."""
    return tl.sum(tl.where(o_n == place, b_sorted, 0), 0)


@triton.jit
def wanted_height(wanted, s, z, tile):
    """The wanted-th lowest height of the merges made so far."""
    o_n = tl.arange(0, tile.NP)
    b_height = tl.load(s.height + o_n).to(tl.int32, bitcast=True)
    return _at(ascending(b_height, tile.NP), wanted - 1, o_n).to(tl.float32, bitcast=True)


@triton.jit
def highest_made(bound, s, z, kind, tile):
    """What a cut by value compares with: the bound of heights as they are returned, or that of sums of heights, of
    which `bound` is the share of the error of one cluster.
    """
    if kind.CUT == CUT_ERROR:
        return total_error(s, z, tile) * bound
    else:
        return bound


@triton.jit
def round_limit(wanted, merged, highest, scale, s, z, kind, tile):
    """The height from which no pair needs to merge under a cut by value, by the merges made so far."""
    limit = float("inf")
    if kind.CUT == CUT_DISTANCE:
        if merged >= wanted:
            limit = highest / scale * SLACK + TINY
            if wanted > 0:
                limit = tl.maximum(limit, wanted_height(wanted, s, z, tile))
    elif merged >= wanted:
        o_n = tl.arange(0, tile.NP)
        b_bits = ascending(tl.load(s.height + o_n).to(tl.int32, bitcast=True), tile.NP)
        b_height = b_bits.to(tl.float32, bitcast=True)
        # New mergers only raise the sums of those above them.
        m_beyond = tl.cumsum(b_height.to(tl.float64), 0) > highest * SLACK + TINY
        limit = tl.min(tl.where(m_beyond, b_height, float("inf")), 0)
        limit = tl.maximum(limit, _at(b_bits, wanted - 1, o_n).to(tl.float32, bitcast=True))
    return limit


@triton.jit
def _below(highest, scale, s, kind, tile):
    """How many merges a cut by value makes."""
    b_height = tl.load(s.height + tl.arange(0, tile.NP))
    if kind.CUT == CUT_DISTANCE:
        m_below = b_height * scale <= highest
    else:
        b_bits = ascending(b_height.to(tl.int32, bitcast=True), tile.NP)
        m_below = tl.cumsum(b_bits.to(tl.float32, bitcast=True).to(tl.float64), 0) <= highest
    return tl.sum(m_below.to(tl.int32), 0)


@triton.jit
def ordered_mergers(b_valid, s, tile):
    """A key of each token, by the height and the round in which it was merged away, and its index, and the keys in
    ascending order: of mergers, then of clusters that never merged into another, then of what is no token.
    """
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    # Clusters that never merged into another have height +inf, and rank above every merge.
    b_height = tl.load(s.height + o_n, mask=b_valid, other=float("inf"))
    b_turn = tl.load(s.turn + o_n, mask=b_valid, other=0)
    b_turn = tl.where(b_height == float("inf"), 2 * NP, b_turn) * NP + o_n
    # What is no token ranks above all.
    b_bits = tl.where(b_valid, b_height.to(tl.int32, bitcast=True), BIG)
    b_key = (b_bits.to(tl.int64) << 32) + b_turn
    return b_key, ascending(b_key, NP)


@triton.jit
def cut_labels(p_heights, p_mask, stride_mask, count, most, highest, scale, s, z, kind, tile):
    """Writes labels [N] and the ascending heights [N - 1] of the merges below the cut, +inf for the others; returns
    the number of clusters.

    Roots are that many entries of greatest height, ties to the later merge; every other token has its parent's root.
    """
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    m_n = o_n < z.n
    made = count - most
    left = most
    if kind.CUT != CUT_COUNT:
        made = tl.maximum(made, _below(highest, scale, s, kind, tile))
        left = count - made
    b_valid = valid_tokens(p_mask, o_n, z.n, stride_mask, kind.MASKED)
    b_key, b_sorted = ordered_mergers(b_valid, s, tile)
    b_made = (b_sorted >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(p_heights + o_n, tl.where(o_n < made, b_made * scale, float("inf")), mask=o_n < z.n - 1)
    m_below = b_valid & (b_key < _at(b_sorted, made, o_n))
    b_owner = tl.load(s.parent + o_n, mask=m_below, other=0)
    b_owner = tl.where(m_below, b_owner, o_n)
    m_root = b_valid & (b_owner == o_n)
    tl.store(s.other + o_n, b_owner)
    tl.debug_barrier()
    # Pointer jumping: every turn doubles how many parents up an owner lies.
    reach = 1
    while reach < z.n:
        b_owner = tl.load(s.other + b_owner)
        tl.debug_barrier()
        tl.store(s.other + o_n, b_owner)
        tl.debug_barrier()
        reach *= 2
    # A root is the lowest token of its cluster, so a prefix count of roots numbers the clusters.
    tl.store(s.turn + o_n, tl.cumsum(m_root.to(tl.int32), 0) - 1)
    tl.debug_barrier()
    # Merges whose costs overflowed never happen, which leaves more roots.
    b_label = tl.minimum(tl.load(s.turn + b_owner), left - 1)
    tl.store(s.label + o_n, tl.where(b_valid, b_label, -1), mask=m_n)
    tl.debug_barrier()
    return left
