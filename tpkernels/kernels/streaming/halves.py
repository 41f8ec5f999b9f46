"""float32 as the sum of two float16, which tensor cores multiply without losing its digits."""

import triton
import triton.language as tl


@triton.jit
def split_halves(b_x):
    """The high and the low float16 of a float32: 22 bits of it where |x| is in 2^-14 .. 2^15."""
    b_high = b_x.to(tl.float16)
    return b_high, (b_x - b_high.to(tl.float32)).to(tl.float16)


@triton.jit(do_not_specialize=["n"])
def split_tokens_kernel(
    p_x, p_offset, p_factor, p_high, p_low, n, d, width, stride_b, stride_n, stride_d, T: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """`factor_b (x - offset_b)` [B, N, D] in halves [B, N, width], zeros behind D; a program has T tokens."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(n, T)
    b = pid // parts
    o_i = pid % parts * T + tl.arange(0, T)
    factor = tl.load(p_factor + b)
    for c in range(0, width, BD):
        o_d = c + tl.arange(0, BD)
        m = (o_i < n)[:, None] & (o_d < d)[None, :]
        p_row = p_x + b * stride_b + o_i[:, None] * stride_n + o_d[None, :] * stride_d
        b_x = tl.load(p_row, mask=m, other=0.0).to(tl.float32)
        b_x -= tl.load(p_offset + b * d + o_d, mask=o_d < d, other=0.0)[None, :]
        b_high, b_low = split_halves(tl.where(m, b_x, 0.0) * factor)
        o_out = (b * n + o_i)[:, None] * width + o_d[None, :]
        m_out = (o_i < n)[:, None] & (o_d < width)[None, :]
        tl.store(p_high + o_out, b_high, mask=m_out)
        tl.store(p_low + o_out, b_low, mask=m_out)
