"""Weighted means of given clusters, and their gradient: one launch each, no atomics.

mu_c = sum_{i in c} w_i x_i / W_c        dL/dx_i = w_i / W_c g_c        dL/dw_i = g_c . (x_i - mu_c) / W_c
"""

import triton
import triton.language as tl

from .tokens import load_tokens, store_means


@triton.jit
def cluster_mean_kernel(
    p_x, p_label, p_weight, p_out, n, d, k,
    stride_b, stride_n, stride_d, stride_lb, stride_ln, stride_wb, stride_wn,
    T: tl.constexpr, BD: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """x [B, N, D] and labels [B, N] to means [B, K, D]; a program has T clusters and BD channels of a sample."""
    pid = tl.program_id(0).to(tl.int64)
    parts_d, parts_k = tl.cdiv(d, BD), tl.cdiv(k, T)
    c = (pid % parts_d).to(tl.int32) * BD
    o_s = (pid // parts_d % parts_k).to(tl.int32) * T + tl.arange(0, T)
    b = pid // (parts_d * parts_k)
    store_means(
        p_x + b * stride_b, p_label + b * stride_lb, p_weight + b * stride_wb, p_label, p_out + b * k * d,
        o_s, o_s, o_s < k, c, tl.minimum(c + BD, d), n, d,
        stride_ln, 0, stride_wn, stride_n, stride_d, T, BD, WEIGHTED, False,
    )  # fmt: skip


@triton.jit
def cluster_mean_backward_kernel(
    p_grad, p_label, p_x, p_mean, p_weight, p_grad_x, p_grad_weight, n, d, k,
    stride_b, stride_n, stride_d, stride_lb, stride_ln, stride_wb, stride_wn,
    T: tl.constexpr, BD: tl.constexpr, WEIGHTED: tl.constexpr, GRAD_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of the means [B, K, D] to tokens [B, N, D] and weights [B, N]; a program has T tokens of a sample."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(n, T)
    o_i = (pid % parts).to(tl.int32) * T + tl.arange(0, T)
    b = pid // parts
    m_i = o_i < n
    p_label += b * stride_lb
    p_weight += b * stride_wb
    l_i = tl.load(p_label + o_i * stride_ln, mask=m_i, other=-1).to(tl.int32)
    b_mass = tl.zeros((T,), tl.float32)
    b_count = tl.zeros((T,), tl.float32)
    for j in range(0, n, T):
        o_j = j + tl.arange(0, T)
        l_j = tl.load(p_label + o_j * stride_ln, mask=o_j < n, other=-1).to(tl.int32)
        m_same = (l_i[:, None] == l_j[None, :]) & (l_j >= 0)[None, :]
        if WEIGHTED:
            b_w = tl.load(p_weight + o_j * stride_wn, mask=o_j < n, other=0.0).to(tl.float32)
            b_mass += tl.sum(tl.where(m_same, b_w[None, :], 0.0), 1)
        b_count += tl.sum(tl.where(m_same, 1.0, 0.0), 1)
    b_share = 1.0 / tl.maximum(b_count, 1.0)
    m_weighs = b_mass > 0
    if WEIGHTED:
        b_w = tl.load(p_weight + o_i * stride_wn, mask=m_i, other=0.0).to(tl.float32)
        b_share = tl.where(m_weighs, b_w / tl.where(m_weighs, b_mass, 1.0), b_share)
    m_in = m_i & (l_i >= 0)
    b_dot = tl.zeros((T,), tl.float32)
    p_row = l_i.to(tl.int64)[:, None] * d
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD)
        m_row = m_in[:, None] & (o_d < d)[None, :]
        b_g = tl.load(p_grad + b * k * d + p_row + o_d[None, :], mask=m_row, other=0.0).to(tl.float32)
        o_out = b * n * d + o_i.to(tl.int64)[:, None] * d + o_d[None, :]
        b_out = (b_g * b_share[:, None]).to(p_grad_x.dtype.element_ty)
        tl.store(p_grad_x + o_out, b_out, mask=m_i[:, None] & (o_d < d)[None, :])
        if GRAD_WEIGHT:
            b_x = load_tokens(p_x + b * stride_b, o_i, o_d, m_in, d, stride_n, stride_d)
            b_mean = tl.load(p_mean + b * k * d + p_row + o_d[None, :], mask=m_row, other=0.0).to(tl.float32)
            b_dot += tl.sum(b_g * (b_x - b_mean), 1)
    if GRAD_WEIGHT:
        # Equal weights stand in where all are 0: those do not depend on the weights.
        b_out = tl.where(m_in & m_weighs, b_dot / tl.where(m_weighs, b_mass, 1.0), 0.0)
        tl.store(p_grad_weight + b * n + o_i, b_out.to(p_grad_weight.dtype.element_ty), mask=m_i)
