"""Every token's nearest center from rows of scores: what K-Means and K-Medoids share."""

import triton
import triton.language as tl

from ..tokens import valid_tokens


@triton.jit
def assign_nearest(p_rows, p_row, p_mask, stride_mask, s, z, kind, tile, SELF: tl.constexpr):
    """Writes every token's nearest slot (label [N], -1 for an invalid token) and its squared distance [N].

    The score of token i at slot t is `square_t - 2 rows_ti`; a slot with square +inf is nobody's. p_rows: [.., ld], slot
    t's row is the t-th; SELF: it is that of the token p_row[t], which belongs to its own slot. The lowest slot wins ties.
    """
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    for c in range(0, z.n, C):
        o_c = c + tl.arange(0, C)
        b_best = tl.full((R, C), float("inf"), tl.float32)
        b_slot = tl.full((R, C), 2147483647, tl.int32)
        for t in range(0, z.k, R):
            o_s = t + tl.arange(0, R)
            b_square = tl.load(s.square + o_s, mask=o_s < z.k, other=float("inf"))
            m_live = b_square < float("inf")
            b_row = o_s
            if SELF:
                b_row = tl.load(p_row + o_s, mask=m_live, other=-1)
            # Whole padded rows load as vectors; what lies beyond N is not stored.
            m_rows = m_live[:, None] & (o_c < z.ld)[None, :]
            b_rows = tl.load(p_rows + b_row[:, None] * z.ld + o_c[None, :], mask=m_rows, other=0.0)
            b_score = b_square[:, None] - 2 * b_rows
            if SELF:
                b_score = tl.where(b_row[:, None] == o_c[None, :], float("-inf"), b_score)
            m_less = b_score < b_best
            b_best = tl.where(m_less, b_score, b_best)
            b_slot = tl.where(m_less, o_s[:, None], b_slot)
        b_least = tl.min(b_best, 0)
        b_label = tl.min(tl.where(b_best == b_least[None, :], b_slot, 2147483647), 0)
        b_norm = tl.load(s.norm + o_c, mask=o_c < z.n, other=0.0)
        tl.store(s.cost + o_c, tl.maximum(b_norm + b_least, 0.0), mask=o_c < z.n)
        m_valid = valid_tokens(p_mask, o_c, z.n, stride_mask, kind.MASKED)
        tl.store(s.label + o_c, tl.where(m_valid, b_label, -1), mask=o_c < z.n)
    tl.debug_barrier()
