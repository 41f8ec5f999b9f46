"""How tokens are read: which of them are valid, and blocks of their channels."""

import triton
import triton.language as tl


@triton.jit
def valid_tokens(p_mask, o_n, n, stride, MASKED: tl.constexpr):
    """Which of the tokens o_n are valid."""
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
