"""The gradient of weighted means of clusters: one launch, O(N D), no atomics.

mu_c = sum_{i in c} w_i x_i / W_c        dL/dx_i = w_i / W_c g_c        dL/dw_i = g_c . (x_i - mu_c) / W_c
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n", "k"])
def cluster_mean_backward_kernel(
    p_grad, p_label, p_x, p_mean, p_weight, p_total, p_grad_x, p_grad_weight, n, d, k,
    stride_gb, stride_gk, stride_gd, stride_lb, stride_ln, stride_b, stride_n, stride_d,
    stride_mb, stride_mk, stride_md, stride_wb, stride_wn, stride_tb, stride_tk,
    T: tl.constexpr, BD: tl.constexpr, WEIGHTED: tl.constexpr, GRAD_WEIGHT: tl.constexpr,
):  # fmt: skip
    """Gradients of the means [B, K, D] to tokens [B, N, D] and weights [B, N]; a program has T tokens of a sample.

    total [B, K] is W_c, or minus the number of members where W_c is 0 and they count equally.
    """
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(n, T)
    b = pid // parts
    o_i = pid % parts * T + tl.arange(0, T)
    m_i = o_i < n
    b_label = tl.load(p_label + b * stride_lb + o_i * stride_ln, mask=m_i, other=-1).to(tl.int64)
    m_in = m_i & (b_label >= 0)
    b_total = tl.load(p_total + b * stride_tb + b_label * stride_tk, mask=m_in, other=1.0)
    m_weighs = b_total > 0
    b_share = 1.0 / tl.abs(b_total)
    if WEIGHTED:
        b_w = tl.load(p_weight + b * stride_wb + o_i * stride_wn, mask=m_in, other=0.0).to(tl.float32)
        b_share = tl.where(m_weighs, b_w / b_total, b_share)
    b_dot = tl.zeros((T,), tl.float32)
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD).to(tl.int64)[None, :]
        m = m_in[:, None] & (o_d < d)
        p_row = p_grad + b * stride_gb + b_label[:, None] * stride_gk
        b_g = tl.load(p_row + o_d * stride_gd, mask=m, other=0.0).to(tl.float32)
        # A token without a cluster gets 0, even where its share is NaN.
        b_out = tl.where(m, b_g * b_share[:, None], 0.0).to(p_grad_x.dtype.element_ty)
        tl.store(p_grad_x + (b * n + o_i)[:, None] * d + o_d, b_out, mask=m_i[:, None] & (o_d < d))
        if GRAD_WEIGHT:
            p_row = p_x + b * stride_b + o_i[:, None] * stride_n
            b_x = tl.load(p_row + o_d * stride_d, mask=m, other=0.0).to(tl.float32)
            p_row = p_mean + b * stride_mb + b_label[:, None] * stride_mk
            b_mean = tl.load(p_row + o_d * stride_md, mask=m, other=0.0).to(tl.float32)
            b_dot += tl.sum(b_g * (b_x - b_mean), 1)
    if GRAD_WEIGHT:
        b_out = tl.where(m_in & m_weighs, b_dot / b_total, 0.0)
        tl.store(p_grad_weight + b * n + o_i, b_out.to(p_grad_weight.dtype.element_ty), mask=m_i)
