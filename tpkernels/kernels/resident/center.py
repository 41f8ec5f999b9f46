"""The tokens of a sample less a pivot a channel, written once: the factors of its Gram matrix.

A common offset cancels digits, so a pivot is taken off every channel, which changes no distance: the mean of 16 tokens
spread over the sample. For half types the pivot has the tokens' own type, and is 0 unless those 16 tokens lie between
half and twice of it, where the difference is exact in that type (Sterbenz). What a half type does not hold of a
difference is kept as a second value of that type. With another metric than the Euclidean one every pivot is 0.
"""

import triton
import triton.language as tl

from ..tokens import load_tokens, valid_tokens
from .codes import METRIC_EUCLIDEAN

SAMPLED = tl.constexpr(16)
# Tokens and channels that are centered at a time.
ROWS, CHANNELS = tl.constexpr(16), tl.constexpr(128)


@triton.jit
def channel_pivots(p_x, p_mask, s, z, strides, kind, tile):
    """Writes the pivot of each channel [ld_d], 0 beyond D."""
    o_s = tl.arange(0, SAMPLED) * z.n // SAMPLED
    m_s = valid_tokens(p_mask, o_s, z.n, strides.mask_n, kind.MASKED)
    count = tl.maximum(tl.sum(m_s.to(tl.int32), 0), 1).to(tl.float32)
    for c in range(0, z.d, CHANNELS):
        o_d = c + tl.arange(0, CHANNELS)
        b_pivot = tl.zeros((CHANNELS,), tl.float32)
        if kind.METRIC == METRIC_EUCLIDEAN:
            b_x = load_tokens(p_x, o_s, o_d, m_s, z.d, strides.n, strides.d)
            b_pivot = tl.sum(b_x, 0) / count
            if kind.HALVES:
                b_pivot = b_pivot.to(p_x.dtype.element_ty).to(tl.float32)
                b_spread = tl.max(tl.where(m_s[:, None], tl.abs(b_x - b_pivot[None, :]), 0.0), 0)
                b_pivot = tl.where(2 * b_spread < tl.abs(b_pivot), b_pivot, 0.0)
        tl.store(s.pivot + o_d, b_pivot, mask=o_d < z.d)
    tl.debug_barrier()


@triton.jit
def center_rows(p_x, p_mask, s, first, last, z, strides, rows, kind, tile):
    """Writes the centered tokens first..last; returns whether one half-type value does not hold all of their entries.

    Invalid tokens become zeros, and so do channels beyond D; rows: of the buffer of a half.
    """
    b_rest = tl.zeros((ROWS, CHANNELS), tl.float32)
    for c in range(0, z.ld_d, CHANNELS):
        o_d = c + tl.arange(0, CHANNELS)
        b_pivot = tl.load(s.pivot + o_d, mask=o_d < z.d, other=0.0)
        for i in tl.range(first, last, ROWS, num_stages=3):
            o_i = i + tl.arange(0, ROWS)
            m_i = valid_tokens(p_mask, o_i, z.n, strides.mask_n, kind.MASKED)
            b_x = load_tokens(p_x, o_i, o_d, m_i, z.d, strides.n, strides.d) - b_pivot[None, :]
            if kind.MASKED:
                b_x = tl.where(m_i[:, None], b_x, 0.0)
            o_at = o_i[:, None] * z.ld_d + o_d[None, :]
            m_at = (o_i < last)[:, None] & (o_d < z.ld_d)[None, :]
            b_high = b_x
            if s.centered.dtype.element_ty == tl.float16:
                # The difference of two float16 can be twice what one holds: the rest is the low half's.
                b_high = tl.minimum(tl.maximum(b_x, -65504.0), 65504.0)
            b_high = b_high.to(s.centered.dtype.element_ty)
            tl.store(s.centered + o_at, b_high, mask=m_at)
            if kind.HALVES:
                b_low = b_x - b_high.to(tl.float32)
                b_rest = tl.maximum(b_rest, tl.abs(b_low))
                tl.store(s.centered + rows * z.ld_d + o_at, b_low.to(s.centered.dtype.element_ty), mask=m_at)
    tl.debug_barrier()
    return (tl.max(tl.max(b_rest, 1), 0) > 0).to(tl.int32)
