"""Attention of long rows: keys stream by, and a second kernel sums the columns of softmax from the saved lse.

The equations are in `rows.py`; which keys and queries are left out, in `blocks.py`.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .blocks import LOG2E, finish, load_keys, load_rows, product, query_weight, row_products, store_rows


@triton.jit(do_not_specialize=["n", "heads"])
def attend_stream_kernel(
    p_q, p_k, p_v, p_size, p_mask, p_out, p_lse, n, heads, d, e, scale,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_ob, stride_oh, stride_on,
    stride_sb, stride_sn, stride_mb, stride_mn,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, SIZED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Out [B, H, N, e] and lse [B, H, N] of BM queries while tiles of BN keys stream by.

    Online softmax: sums are scaled down whenever a larger logit comes (Milakov, Gimelshein, arXiv 1805.02867).
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BM)
    bh = pid // blocks
    b = bh // heads
    h = bh % heads
    p_q += (b * stride_qb + h * stride_qh) * UNIT
    p_k += (b * stride_kb + h * stride_kh) * UNIT
    p_v += (b * stride_vb + h * stride_vh) * UNIT
    p_out += (b * stride_ob + h * stride_oh) * UNIT
    p_size += b * stride_sb
    p_mask += b * stride_mb
    o_d = tl.arange(0, BD)
    o_e = tl.arange(0, BE)
    o_m = (pid % blocks).to(tl.int32) * BM + tl.arange(0, BM)
    m_m = valid_tokens(p_mask, o_m, n, stride_mn, MASKED)
    b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
    b_max = tl.full((BM,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BM,), tl.float32)
    b_out = tl.zeros((BM, BE), tl.float32)
    for j in tl.range(0, n, BN):
        o_n = j + tl.arange(0, BN)
        m_n = valid_tokens(p_mask, o_n, n, stride_mn, MASKED)
        m_n, b_bias = load_keys(p_size, o_n, m_n, stride_sn, SIZED)
        b_k = load_rows(p_k, o_n, m_n, o_d, d, stride_kn, UNIT)
        b_p = row_products(
            b_q, b_k, p_q, o_m, m_m, stride_qn, p_k, o_n, m_n, stride_kn, d,
            BD, BC, PRECISION, WIDEN, UNIT,
        )  # fmt: skip
        b_p = b_p * (scale * LOG2E) + b_bias[None, :]
        b_new = tl.maximum(b_max, tl.max(b_p, 1))
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp2(b_p - b_base[:, None])
        b_shrink = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_v = load_rows(p_v, o_n, m_n, o_e, e, stride_vn, UNIT)
        b_out = product(b_p.to(b_v.dtype), b_v, b_out * b_shrink[:, None], PRECISION, WIDEN)
        b_max = b_new
    b_inverse, b_lse = finish(b_max, b_sum, m_m)
    b_out = tl.where(m_m[:, None], b_out * b_inverse[:, None], 0.0)
    store_rows(p_out, b_out, o_m, o_m < n, o_e, e, stride_on, UNIT)
    tl.store(p_lse + bh * n + o_m, b_lse, mask=o_m < n)


@triton.jit(do_not_specialize=["n", "heads"])
def received_kernel(
    p_q, p_k, p_size, p_mask, p_lse, p_partial, n, heads, d, scale,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_sb, stride_sn, stride_mb, stride_mn,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, SIZED: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Partial sums [B, H, N]: what BN keys of a head received, `sum_i size_i exp2(logit_ij - lse_i)`."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BN)
    bh = pid // blocks
    b = bh // heads
    h = bh % heads
    p_q += (b * stride_qb + h * stride_qh) * UNIT
    p_k += (b * stride_kb + h * stride_kh) * UNIT
    p_size += b * stride_sb
    p_mask += b * stride_mb
    p_lse += bh * n
    o_d = tl.arange(0, BD)
    o_n = (pid % blocks).to(tl.int32) * BN + tl.arange(0, BN)
    m_n = valid_tokens(p_mask, o_n, n, stride_mn, MASKED)
    m_n, b_bias = load_keys(p_size, o_n, m_n, stride_sn, SIZED)
    b_k = load_rows(p_k, o_n, m_n, o_d, d, stride_kn, UNIT)
    b_received = tl.zeros((BN,), tl.float32)
    for i in tl.range(0, n, BM):
        o_m = i + tl.arange(0, BM)
        m_m = valid_tokens(p_mask, o_m, n, stride_mn, MASKED)
        b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
        b_lse = tl.load(p_lse + o_m, mask=o_m < n, other=float("inf"))
        b_p = row_products(
            b_k, b_q, p_k, o_n, m_n, stride_kn, p_q, o_m, m_m, stride_qn, d,
            BD, BC, PRECISION, WIDEN, UNIT,
        )  # fmt: skip
        b_p = b_p * (scale * LOG2E) + b_bias[:, None]
        b_p = tl.exp2(b_p - b_lse[None, :])
        b_received += tl.sum(b_p * query_weight(p_size, o_m, m_m, stride_sn, SIZED)[None, :], 1)
    tl.store(p_partial + bh * n + o_n, b_received, mask=o_n < n)
