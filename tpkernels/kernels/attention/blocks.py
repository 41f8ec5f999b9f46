"""Blocks of queries, keys and values: how they are read, multiplied and written, and what the softmax of a row needs.

Dropped keys (masked, or of size 0) are loaded as zeros, whatever they hold. Invalid queries, and those without keys,
get lse = +inf: every later exp2(logit - lse) is 0.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(b_a, b_b, b_sum, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """b_sum + b_a b_b, b_sum may be None; WIDEN: the interpreter's bfloat16 product is wrong, so it gets float32."""
    if WIDEN:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_sum, input_precision="ieee")
    else:
        return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)


@triton.jit
def _places(o_n, m_n, o_d, d, stride_n, UNIT: tl.constexpr):
    """Offsets of rows and channels, and which are valid; d and stride_n count vectors of UNIT channels."""
    o_x = o_n.to(tl.int64)[:, None] * stride_n * UNIT + o_d[None, :]
    return o_x, m_n[:, None] & (o_d < d * UNIT)[None, :]


@triton.jit
def load_rows(p_x, o_n, m_n, o_d, d, stride_n, UNIT: tl.constexpr):
    """A block [rows, channels] in its own type, zeros outside."""
    o_x, m_x = _places(o_n, m_n, o_d, d, stride_n, UNIT)
    return tl.load(p_x + o_x, mask=m_x, other=0.0)


@triton.jit
def store_rows(p_x, b_x, o_n, m_n, o_d, d, stride_n, UNIT: tl.constexpr):
    """Writes a block [rows, channels] in the tensor's type."""
    o_x, m_x = _places(o_n, m_n, o_d, d, stride_n, UNIT)
    tl.store(p_x + o_x, b_x.to(p_x.dtype.element_ty), mask=m_x)


@triton.jit
def row_products(
    b_a, b_b, p_a, o_a, m_a, stride_an, p_b, o_b, m_b, stride_bn, d,
    BD: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """`a_i . b_j` for all rows of two blocks, which are read again BC channels at a time where 0 < BC < BD.

    tf32x3 holds two parts of both factors, which for whole rows of float32 takes more registers than a thread has.
    """
    if BC == 0 or BC >= BD:
        b_sum = product(b_a, tl.trans(b_b), None, PRECISION, WIDEN)
    else:
        b_sum = tl.zeros((o_a.shape[0], o_b.shape[0]), tl.float32)
        for c in range(0, d * UNIT, BC):
            o_d = c + tl.arange(0, BC)
            b_some = load_rows(p_b, o_b, m_b, o_d, d, stride_bn, UNIT)
            b_sum = product(
                load_rows(p_a, o_a, m_a, o_d, d, stride_an, UNIT), tl.trans(b_some), b_sum, PRECISION, WIDEN
            )
    return b_sum


@triton.jit
def valid_rows(p_mask, o_n, n, stride, MASKED: tl.constexpr):
    """Which rows are valid."""
    m_n = o_n < n
    if MASKED:  # noqa: SIM102
        # Always so, but a branch: a product is laid out for the narrowest load that its factors are seen to depend on,
        # and for flags of a byte that takes twice the instructions.
        if n > 0:
            m_n = valid_tokens(p_mask, o_n, n, stride, MASKED)
    return m_n


@triton.jit
def load_keys(p_size, o_n, m_n, stride_sn, SIZED: tl.constexpr):
    """Which of the valid keys count, and the log2 of their sizes, -inf for dropped keys."""
    if SIZED:
        b_size = tl.load(p_size + o_n.to(tl.int64) * stride_sn, mask=m_n, other=0.0).to(tl.float32)
        m_n = m_n & (b_size != 0)
        b_bias = tl.log2(b_size)
    else:
        b_bias = tl.zeros(o_n.shape, tl.float32)
    return m_n, tl.where(m_n, b_bias, float("-inf"))


@triton.jit
def query_weight(p_size, o_m, m_m, stride_sn, SIZED: tl.constexpr):
    """How often each query counts, 0 for invalid ones."""
    if SIZED:
        b_weight = tl.load(p_size + o_m.to(tl.int64) * stride_sn, mask=m_m, other=0.0).to(tl.float32)
    else:
        b_weight = m_m.to(tl.float32)
    return b_weight


@triton.jit
def finish(b_max, b_sum, m_m):
    """1 over each row's sum (0 for a row without keys), and lse; NaN stays NaN."""
    m_none = (b_sum == 0) | (m_m == 0)
    b_inverse = tl.where(b_sum == 0, 0.0, 1.0 / b_sum)
    b_lse = tl.where(m_none, float("inf"), b_max + tl.log2(b_sum))
    return b_inverse, b_lse
