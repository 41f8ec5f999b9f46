"""Reading tokens: the Gram matrix of a sample. After it a clustering touches the D channels once more, to pool.

A common offset cancels digits, so every channel has a pivot taken off first, which changes no distance: the mean of 16
tokens spread over the sample. Half types keep one exact product: their pivot is of their own type and stands only where
those tokens lie within half and twice of it, where subtracting is exact (Sterbenz). A token that is not exact after all
is noticed, and the sample's matrix is made again from two parts a factor, high and low.
"""

import triton
import triton.language as tl

SAMPLED = tl.constexpr(16)
# How factors enter the product: as float32 split by the hardware's means, as one exact half, as high and low bfloat16.
FULL, EXACT, SPLIT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def valid_tokens(p_mask, o_n, n, stride, MASKED: tl.constexpr):
    """Which of the tokens o_n are there."""
    m_n = o_n < n
    if MASKED:
        m_n = m_n & (tl.load(p_mask + o_n * stride, mask=m_n, other=0) != 0)
    return m_n


@triton.jit
def load_tokens(p_x, o_n, o_d, m_n, d, stride_n, stride_d):
    """A block [T, BD] of tokens in float32, zero outside."""
    m = m_n[:, None] & (o_d < d)[None, :]
    o_x = o_n.to(tl.int64)[:, None] * stride_n + o_d.to(tl.int64)[None, :] * stride_d
    return tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)


@triton.jit
def channel_pivots(
    p_x, p_mask, p_pivot, n, d, stride_n, stride_d, stride_mask, BD: tl.constexpr, MASKED: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """Writes what is taken off each channel [D]."""
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
    """b_gram + b_i b_j^T; WIDEN turns factors back to float32, for an interpreter whose bfloat16 product is wrong."""
    if WIDEN:
        return tl.dot(b_i.to(tl.float32), tl.trans(b_j.to(tl.float32)), b_gram, input_precision="ieee")
    elif FACTORS == FULL:
        return tl.dot(b_i, tl.trans(b_j), b_gram, input_precision=PRECISION)
    else:
        return tl.dot(b_i, tl.trans(b_j), b_gram)


@triton.jit
def gram_tile(
    p_x, p_mask, p_pivot, p_gram, i, j, n, d, stride_n, stride_d, stride_mask, ld,
    T: tl.constexpr, BD: tl.constexpr, MASKED: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Writes rows i.. and columns j.. (j <= i) of the Gram matrix and their mirror image; counts inexact factors."""
    o_i = i + tl.arange(0, T)
    o_j = j + tl.arange(0, T)
    m_i = valid_tokens(p_mask, o_i, n, stride_mask, MASKED)
    m_j = valid_tokens(p_mask, o_j, n, stride_mask, MASKED)
    b_gram = tl.zeros((T, T), tl.float32)
    b_inexact = tl.zeros((T,), tl.int32)
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD)
        b_pivot = tl.load(p_pivot + o_d, mask=o_d < d, other=0.0)[None, :]
        # Rows of tokens that are not there hold a multiple of the pivot, and nobody reads them.
        b_i = load_tokens(p_x, o_i, o_d, m_i, d, stride_n, stride_d) - b_pivot
        b_j = load_tokens(p_x, o_j, o_d, m_j, d, stride_n, stride_d) - b_pivot
        if FACTORS == FULL:
            b_gram = _product(b_i, b_j, b_gram, FACTORS, PRECISION, WIDEN)
        elif FACTORS == EXACT:
            h_i, h_j = b_i.to(p_x.dtype.element_ty), b_j.to(p_x.dtype.element_ty)
            b_inexact += tl.sum((h_i.to(tl.float32) != b_i).to(tl.int32), 1)
            b_gram = _product(h_i, h_j, b_gram, FACTORS, PRECISION, WIDEN)
        else:
            h_i, h_j = b_i.to(tl.bfloat16), b_j.to(tl.bfloat16)
            r_i, r_j = (b_i - h_i.to(tl.float32)).to(tl.bfloat16), (b_j - h_j.to(tl.float32)).to(tl.bfloat16)
            b_gram = _product(h_i, r_j, b_gram, FACTORS, PRECISION, WIDEN)
            b_gram = _product(r_i, h_j, b_gram, FACTORS, PRECISION, WIDEN)
            b_gram = _product(h_i, h_j, b_gram, FACTORS, PRECISION, WIDEN)
    # One triangle, mirrored: the matrix is symmetric to the last bit.
    b_mirror = tl.trans(b_gram)
    if i == j:
        b_gram = tl.where(o_i[:, None] >= o_j[None, :], b_gram, b_mirror)
        b_mirror = b_gram
    # Lines are a multiple of 16 wide, so that whole vectors are stored; nobody reads what stands beyond the tokens.
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
    """Writes the whole Gram matrix [N, ld], finite where a token is not there; the number of inexact factors."""
    inexact = 0
    for i in range(0, n, T):
        for j in range(0, i + T, T):
            inexact += gram_tile(
                p_x, p_mask, p_pivot, p_gram, i, j, n, d, stride_n, stride_d, stride_mask, ld,
                T, BD, MASKED, FACTORS, PRECISION, WIDEN,
            )  # fmt: skip
    tl.debug_barrier()
    return inexact
