"""Every token's nearest center from rows of products: what K-Means and K-Medoids share."""

import triton
import triton.language as tl

from ..tokens import valid_tokens


@triton.jit
def assign_nearest(p_rows, p_row, p_mask, stride_mask, s, z, kind, tile, TOKENS: tl.constexpr):
    """Writes every token's nearest slot (label [N], -1 for an invalid token) and its squared distance (cost [N]).

    The score of token i at slot t is `square_t - 2 rows_ti`; a slot with square +inf is nobody's. Rows [.., ld] are
    finite where their slot is not; slot t's row is the t-th, or with TOKENS that of the token p_row[t]. The lowest slot
    wins ties.
    """
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    for c in range(0, z.n, C):
        o_c = c + tl.arange(0, C)
        b_best = tl.full((R, C), float("inf"), tl.float32)
        b_slot = tl.zeros((R, C), tl.int32)
        # Nothing is stored in this loop, so that rows may be loaded ahead.
        for t in tl.range(0, z.k, R, num_stages=3):
            o_t = t + tl.arange(0, R)
            b_square = tl.load(s.square + o_t)
            b_row = tl.minimum(o_t, z.k - 1)
            if TOKENS:
                b_row = tl.load(p_row + b_row)
                b_row = tl.where(b_row < z.n, b_row, 0)
            # Whole blocks load as vectors; what lies beyond N is not stored. A comparison with NaN is false.
            b_score = b_square[:, None] - 2 * tl.load(p_rows + b_row[:, None] * z.ld + o_c[None, :])
            m_less = b_score < b_best
            b_best = tl.where(m_less, b_score, b_best)
            b_slot = tl.where(m_less, o_t[:, None], b_slot)
        b_least = tl.min(b_best, 0)
        b_label = tl.min(tl.where(b_best == b_least[None, :], b_slot, 2147483647), 0)
        m_valid = valid_tokens(p_mask, o_c, z.n, stride_mask, kind.MASKED)
        tl.store(s.cost + o_c, tl.maximum(tl.load(s.norm + o_c) + b_least, 0.0))
        tl.store(s.label + o_c, tl.where(m_valid, b_label, -1))
    tl.debug_barrier()
