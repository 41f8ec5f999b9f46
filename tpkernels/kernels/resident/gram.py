"""The Gram matrix of a sample, made in the only pass over the D channels before pooling.

A common offset cancels digits, so a pivot is taken off every channel, which changes no distance: the mean of 16 tokens
spread over the sample. For half types the pivot has the tokens' own type, and is 0 unless those 16 tokens lie between
half and twice of it, where the difference is exact in that type (Sterbenz): one product of halves is then enough.
Differences that are not exact are counted, and the sample's matrix is made again from two bfloat16, high and low.
"""

import triton
import triton.language as tl

from ..tokens import load_tokens, valid_tokens
from .codes import FACTORS_EXACT, FACTORS_FULL

SAMPLED = tl.constexpr(16)


@triton.jit
def channel_pivots(
    p_x, p_mask, p_pivot, n, d, stride_n, stride_d, stride_mask, BD: tl.constexpr, MASKED: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """Writes the pivot of each channel [D]."""
    o_s = tl.arange(0, SAMPLED) * n // SAMPLED
    m_s = valid_tokens(p_mask, o_s, n, stride_mask, MASKED)
    count = tl.maximum(tl.sum(m_s.to(tl.int32), 0), 1).to(tl.float32)
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD)
        b_x = load_tokens(p_x, o_s, o_d, m_s, d, stride_n, stride_d)
        b_pivot = tl.sum(b_x, 0) / count
        if HALF:
            b_pivot = b_pivot.to(p_x.dtype.element_ty).to(tl.float32)
            b_spread = tl.max(tl.where(m_s[:, None], tl.abs(b_x - b_pivot[None, :]), 0.0), 0)
            b_pivot = tl.where(2 * b_spread < tl.abs(b_pivot), b_pivot, 0.0)
        tl.store(p_pivot + o_d, b_pivot, mask=o_d < d)
    tl.debug_barrier()


@triton.jit
def _product(b_i, b_j, b_gram, FACTORS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """b_gram + b_i b_j^T; WIDEN: the interpreter's bfloat16 product is wrong, so it gets float32 factors."""
    if WIDEN:
        return tl.dot(b_i.to(tl.float32), tl.trans(b_j.to(tl.float32)), b_gram, input_precision="ieee")
    elif FACTORS == FACTORS_FULL:
        return tl.dot(b_i, tl.trans(b_j), b_gram, input_precision=PRECISION)
    else:
        return tl.dot(b_i, tl.trans(b_j), b_gram)


@triton.jit
def gram_tile(
    p_x, p_mask, p_pivot, p_gram, i, j, n, d, stride_n, stride_d, stride_mask, ld,
    T: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Writes rows i.. and columns j.. (j <= i) of the Gram matrix and their mirror image; returns how many
    factors are inexact.
    """
    o_i = i + tl.arange(0, T)
    o_j = j + tl.arange(0, T)
    m_i = valid_tokens(p_mask, o_i, n, stride_mask, MASKED)
    m_j = valid_tokens(p_mask, o_j, n, stride_mask, MASKED)
    b_gram = tl.zeros((T, T), tl.float32)
    b_inexact = tl.zeros((T,), tl.int32)
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD)
        b_pivot = tl.load(p_pivot + o_d, mask=o_d < d, other=0.0)[None, :]
        # Invalid tokens load as 0, so their entries are products of pivots: finite, and masked where they are read.
        b_i = load_tokens(p_x, o_i, o_d, m_i, d, stride_n, stride_d) - b_pivot
        b_j = load_tokens(p_x, o_j, o_d, m_j, d, stride_n, stride_d) - b_pivot
        if FACTORS == FACTORS_FULL:
            b_gram = _product(b_i, b_j, b_gram, FACTORS, PRECISION, WIDEN)
        elif FACTORS == FACTORS_EXACT:
            h_i, h_j = b_i.to(p_x.dtype.element_ty), b_j.to(p_x.dtype.element_ty)
            b_inexact += tl.sum((h_i.to(tl.float32) != b_i).to(tl.int32), 1)
            b_gram = _product(h_i, h_j, b_gram, FACTORS, PRECISION, WIDEN)
        else:
            h_i, h_j = b_i.to(tl.bfloat16), b_j.to(tl.bfloat16)
            r_i, r_j = (b_i - h_i.to(tl.float32)).to(tl.bfloat16), (b_j - h_j.to(tl.float32)).to(tl.bfloat16)
            b_gram = _product(h_i, r_j, b_gram, FACTORS, PRECISION, WIDEN)
            b_gram = _product(r_i, h_j, b_gram, FACTORS, PRECISION, WIDEN)
            b_gram = _product(h_i, h_j, b_gram, FACTORS, PRECISION, WIDEN)
    # Mirror the lower triangle, so that the matrix is symmetric to the last bit.
    b_mirror = tl.trans(b_gram)
    if i == j:
        b_gram = tl.where(o_i[:, None] >= o_j[None, :], b_gram, b_mirror)
        b_mirror = b_gram
    # Rows are padded to a multiple of 16, so that stores are vectors; the padding is masked where it is read.
    m_tile = (o_i < n)[:, None] & (o_j < ld)[None, :]
    tl.store(p_gram + o_i[:, None] * ld + o_j[None, :], b_gram, mask=m_tile)
    if i != j:
        m_tile = (o_j < n)[:, None] & (o_i < ld)[None, :]
        tl.store(p_gram + o_j[:, None] * ld + o_i[None, :], b_mirror, mask=m_tile)
    return tl.sum(b_inexact, 0)


@triton.jit
def gram_matrix(
    p_x, p_mask, p_pivot, p_gram, n, d, stride_n, stride_d, stride_mask, ld,
    T: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Writes the Gram matrix [N, ld], finite at invalid tokens; returns how many factors are inexact."""
    inexact = 0
    for i in range(0, n, T):
        for j in range(0, i + T, T):
            inexact += gram_tile(
                p_x, p_mask, p_pivot, p_gram, i, j, n, d, stride_n, stride_d, stride_mask, ld,
                T, BD, MASKED, FACTORS, PRECISION, WIDEN,
            )  # fmt: skip
    tl.debug_barrier()
    return inexact
