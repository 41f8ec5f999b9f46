"""The gradient of softmax attention: probabilities are recomputed from lse, nothing of N x N is kept.

    delta_i = g_i . out_i                    ds_ij = p_ij (g_i . v_j - delta_i)
    dq_i = scale sum_j ds_ij k_j             dk_j = scale sum_i ds_ij q_i             dv_j = sum_i p_ij g_i

One kernel loops over the keys for each block of queries, another over the queries for each block of keys: no atomics,
the same bits every time. Sizes and masks have no gradient; `blocks.py` says how they, and lse, leave out keys and
queries.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .blocks import LOG2E, load_keys, load_rows, product, row_products, store_rows, valid_rows


@triton.jit(do_not_specialize=["n", "heads"])
def query_gradient_kernel(
    p_grad, p_q, p_k, p_v, p_out, p_size, p_mask, p_lse, p_delta, p_dq, n, heads, d, e, scale,
    stride_gb, stride_gh, stride_gn, stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on, stride_xb, stride_xh, stride_xn,
    stride_sb, stride_sn, stride_mb, stride_mn,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, SIZED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """dq [B, H, N, d] and delta [B, H, N] of BM queries while tiles of BN keys stream by."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BM)
    bh = pid // blocks
    b = bh // heads
    h = bh % heads
    p_grad += (b * stride_gb + h * stride_gh) * UNIT
    p_q += (b * stride_qb + h * stride_qh) * UNIT
    p_k += (b * stride_kb + h * stride_kh) * UNIT
    p_v += (b * stride_vb + h * stride_vh) * UNIT
    p_size += b * stride_sb
    p_mask += b * stride_mb
    o_d = tl.arange(0, BD)
    o_e = tl.arange(0, BE)
    o_m = (pid % blocks).to(tl.int32) * BM + tl.arange(0, BM)
    m_m = valid_tokens(p_mask, o_m, n, stride_mn, MASKED)
    b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
    b_grad = load_rows(p_grad, o_m, m_m, o_e, e, stride_gn, UNIT)
    b_out = load_rows(p_out + (b * stride_ob + h * stride_oh) * UNIT, o_m, m_m, o_e, e, stride_on, UNIT)
    b_delta = b_grad.to(tl.float32) * b_out.to(tl.float32)
    # Masked after the product: fused into the first sum over lanes, it would leave copies of a row's sum unequal.
    b_delta = tl.sum(tl.where(m_m[:, None] & (o_e < e * UNIT)[None, :], b_delta, 0.0), 1)
    tl.store(p_delta + bh * n + o_m, b_delta, mask=o_m < n)
    b_lse = tl.load(p_lse + bh * n + o_m, mask=o_m < n, other=float("inf"))
    b_dq = tl.zeros((BM, BD), tl.float32)
    for j in tl.range(0, n, BN):
        o_n = j + tl.arange(0, BN)
        m_n = valid_tokens(p_mask, o_n, n, stride_mn, MASKED)
        m_n, b_bias = load_keys(p_size, o_n, m_n, stride_sn, SIZED)
        b_k = load_rows(p_k, o_n, m_n, o_d, d, stride_kn, UNIT)
        b_v = load_rows(p_v, o_n, m_n, o_e, e, stride_vn, UNIT)
        b_p = row_products(
            b_q, b_k, p_q, o_m, m_m, stride_qn, p_k, o_n, m_n, stride_kn, d,
            BD, BC, PRECISION, WIDEN, UNIT,
        )  # fmt: skip
        b_slope = row_products(
            b_grad, b_v, p_grad, o_m, m_m, stride_gn, p_v, o_n, m_n, stride_vn, e,
            BE, BC, PRECISION, WIDEN, UNIT,
        )  # fmt: skip
        b_p = tl.exp2(b_p * (scale * LOG2E) + b_bias[None, :] - b_lse[:, None]) * (b_slope - b_delta[:, None])
        b_dq = product(b_p.to(b_k.dtype), b_k, b_dq, PRECISION, WIDEN)
    store_rows(p_dq + (b * stride_xb + h * stride_xh) * UNIT, b_dq * scale, o_m, o_m < n, o_d, d, stride_xn, UNIT)


@triton.jit(do_not_specialize=["n", "heads"])
def key_gradient_kernel(
    p_grad, p_q, p_k, p_v, p_size, p_mask, p_lse, p_delta, p_dk, p_dv, n, heads, d, e, scale,
    stride_gb, stride_gh, stride_gn, stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_xb, stride_xh, stride_xn, stride_yb, stride_yh, stride_yn,
    stride_sb, stride_sn, stride_mb, stride_mn,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, SIZED: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """dk [B, H, N, d] and dv [B, H, N, e] of BN keys while tiles of BM queries stream by."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BN)
    bh = pid // blocks
    b = bh // heads
    h = bh % heads
    p_grad += (b * stride_gb + h * stride_gh) * UNIT
    p_q += (b * stride_qb + h * stride_qh) * UNIT
    p_k += (b * stride_kb + h * stride_kh) * UNIT
    p_v += (b * stride_vb + h * stride_vh) * UNIT
    p_size += b * stride_sb
    p_mask += b * stride_mb
    p_lse += bh * n
    p_delta += bh * n
    o_d = tl.arange(0, BD)
    o_e = tl.arange(0, BE)
    o_n = (pid % blocks).to(tl.int32) * BN + tl.arange(0, BN)
    m_n = valid_rows(p_mask, o_n, n, stride_mn, MASKED)
    m_n, b_bias = load_keys(p_size, o_n, m_n, stride_sn, SIZED)
    b_k = load_rows(p_k, o_n, m_n, o_d, d, stride_kn, UNIT)
    b_v = load_rows(p_v, o_n, m_n, o_e, e, stride_vn, UNIT)
    b_dk = tl.zeros((BN, BD), tl.float32)
    b_dv = tl.zeros((BN, BE), tl.float32)
    for i in tl.range(0, n, BM):
        o_m = i + tl.arange(0, BM)
        m_m = valid_rows(p_mask, o_m, n, stride_mn, MASKED)
        b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
        b_grad = load_rows(p_grad, o_m, m_m, o_e, e, stride_gn, UNIT)
        b_lse = tl.load(p_lse + o_m, mask=o_m < n, other=float("inf"))
        b_delta = tl.load(p_delta + o_m, mask=o_m < n, other=0.0)
        b_p = row_products(
            b_k, b_q, p_k, o_n, m_n, stride_kn, p_q, o_m, m_m, stride_qn, d,
            BD, BC, PRECISION, WIDEN, UNIT,
        )  # fmt: skip
        b_p = tl.exp2(b_p * (scale * LOG2E) + b_bias[:, None] - b_lse[None, :])
        b_dv = product(b_p.to(b_grad.dtype), b_grad, b_dv, PRECISION, WIDEN)
        b_slope = row_products(
            b_v, b_grad, p_v, o_n, m_n, stride_vn, p_grad, o_m, m_m, stride_gn, e,
            BE, BC, PRECISION, WIDEN, UNIT,
        )  # fmt: skip
        b_p *= b_slope - b_delta[None, :]
        b_dk = product(b_p.to(b_q.dtype), b_q, b_dk, PRECISION, WIDEN)
    store_rows(p_dk + (b * stride_xb + h * stride_xh) * UNIT, b_dk * scale, o_n, o_n < n, o_d, d, stride_xn, UNIT)
    store_rows(p_dv + (b * stride_yb + h * stride_yh) * UNIT, b_dv, o_n, o_n < n, o_e, e, stride_yn, UNIT)
