"""The whole dendrogram of one sample, as scipy writes it: a row for each merger, from the lowest to the highest.

A row names the two clusters that merge, the lower number first, their distance `sqrt(2 height)`, and how many tokens
the new one has. Clusters are numbered as they appear: valid tokens by their rank, then mergers by their row.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .cluster import look_at, weights_of
from .cut import ordered_mergers
from .scratch import vector_part
from .ward import ward_rounds


@triton.jit
def _name_clusters(made, count, s):
    """Writes of each merger, in order, the lower and the higher cluster and the number of tokens: label, other, order.

    Before, `near` has each token's rank and `scan` 1; first and second have the tokens that stand for what merges.
    """
    for row in tl.range(made, num_stages=1):
        kept = tl.load(s.first + row)
        gone = tl.load(s.second + row)
        one = tl.load(s.near + kept)
        two = tl.load(s.near + gone)
        tokens = tl.load(s.scan + kept) + tl.load(s.scan + gone)
        tl.debug_barrier()
        tl.store(s.near + kept, count + row)
        tl.store(s.scan + kept, tokens)
        tl.store(s.label + row, tl.minimum(one, two))
        tl.store(s.other + row, tl.maximum(one, two))
        tl.store(s.order + row, tokens)
        tl.debug_barrier()


@triton.jit
def merge_sample(tensors, s, b, z, strides, kind, tile):
    """Makes all mergers of a sample from its Gram matrix; none where there are bad numbers."""
    o_n = tl.arange(0, tile.NP)
    _, _, count, peak, scale, bad = look_at(tensors, b, s, z, strides, kind, tile)
    tl.store(s.height + o_n, tl.full((tile.NP,), float("inf"), tl.float32))
    tl.debug_barrier()
    if (bad == 0) & (count > 1):
        p_mask = tensors.mask + b * strides.mask_b
        ward_rounds(p_mask, strides.mask_n, count, 1, peak > 0, 0.0, scale, s, z, kind, tile)


@triton.jit
def write_tree(tensors, p_tree, s, b, z, strides, kind, tile):
    """Writes the dendrogram [N - 1, 4] of the mergers in scratch; (-1, -1, inf, 0) in rows without one."""
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    b_valid = valid_tokens(tensors.mask + b * strides.mask_b, o_n, z.n, strides.mask_n, kind.MASKED)
    _, _, scale = weights_of(tensors, b, b_valid, strides, kind, tile)
    _, b_sorted = ordered_mergers(b_valid, s, tile)
    b_height = (b_sorted >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    made = tl.sum((b_height < float("inf")).to(tl.int32), 0)
    b_gone = b_sorted.to(tl.int32) & (NP - 1)
    tl.store(s.first + o_n, tl.load(s.parent + b_gone))
    tl.store(s.second + o_n, b_gone)
    tl.store(s.least + o_n, b_height * (scale * NP))
    tl.store(s.near + o_n, tl.cumsum(b_valid.to(tl.int32), 0) - 1)
    tl.store(s.scan + o_n, tl.full((NP,), 1, tl.int32))
    tl.debug_barrier()
    _name_clusters(made, tl.sum(b_valid.to(tl.int32), 0), s)
    p_tree += b * (z.n - 1) * 4
    V: tl.constexpr = vector_part(NP)
    for first in tl.range(0, z.n - 1, V, num_stages=1):
        o_v = first + tl.arange(0, V)
        m_made = o_v < made
        m_row = o_v < z.n - 1
        b_far = tl.sqrt(2 * tl.load(s.least + o_v, mask=m_made, other=float("inf")).to(tl.float64))
        tl.store(p_tree + o_v * 4, tl.load(s.label + o_v, mask=m_made, other=-1).to(tl.float64), mask=m_row)
        tl.store(p_tree + o_v * 4 + 1, tl.load(s.other + o_v, mask=m_made, other=-1).to(tl.float64), mask=m_row)
        tl.store(p_tree + o_v * 4 + 2, b_far, mask=m_row)
        tl.store(p_tree + o_v * 4 + 3, tl.load(s.order + o_v, mask=m_made, other=0).to(tl.float64), mask=m_row)
