"""Weighted means of clusters whose members a sort has made contiguous.

    mu_s = sum_{i in s} w_i x_i / W_s,    W_s = sum_{i in s} w_i    (equal weights where W_s is 0)

`order` [B * N] lists the tokens (as b N + i) by (sample, label, i), and `bounds` [B, K + 1] says where each cluster's
members begin in it; tokens without a label follow the last cluster. One program adds each sum in order: no atomics, the
same result whatever the batch. The order is cut into chunks of L places, and chunks within one cluster are averaged
first, so that a cluster of a hundred thousand members is not left to one program. The gradient is one launch in O(N D):

    dL/dx_i = w_i / W_s g_s,    dL/dw_i = g_s . (x_i - mu_s) / W_s
"""

import triton
import triton.language as tl

from .halves import split_halves

# What is written: pooled tokens; centers in halves; centers in float32, with the search for medoids reset.
MODE_TOKENS, MODE_CENTERS, MODE_MEDOIDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
INFINITE_BITS = tl.constexpr(0x7F800000)


@triton.jit(do_not_specialize=["n", "k", "chunks"], do_not_specialize_on_alignment=["p_moving"])
def chunk_mean_kernel(
    p_x, p_weight, p_offset, p_key, p_order, p_moving, p_mean, p_mass, n, d, k, chunks,
    stride_b, stride_n, stride_d, stride_wb, stride_wn,
    L: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
    WEIGHTED: tl.constexpr, CENTERED: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Mean [D] and sum of the weights of every chunk of L places that lies within one cluster.

    The sorted keys [B * N] are b (K + 1) + label. A program has BD channels of a chunk.
    """
    pid = tl.program_id(0).to(tl.int64)
    parts_d = tl.cdiv(d, BD)
    o_d = (pid % parts_d).to(tl.int32) * BD + tl.arange(0, BD)
    chunk = pid // parts_d
    b = chunk // chunks
    first = b * n + chunk % chunks * L
    moving = 1
    if GATED:
        moving = tl.load(p_moving + b)
    if moving == 0:
        return
    key = tl.load(p_key + first).to(tl.int64)
    if (key != tl.load(p_key + first + L - 1).to(tl.int64)) | (key == b * (k + 1) + k):
        return
    p_weight += b * stride_wb
    mass = 0.0
    if WEIGHTED:
        o_all = tl.load(p_order + first + tl.arange(0, L)) - b * n
        mass = tl.sum(tl.load(p_weight + o_all * stride_wn).to(tl.float32), 0)
    b_mean = tl.zeros((BD,), tl.float32)
    for r in range(0, L, R):
        o_i = tl.load(p_order + first + r + tl.arange(0, R)) - b * n
        b_share = tl.full((R,), 1.0 / L, tl.float32)
        if WEIGHTED:
            b_w = tl.load(p_weight + o_i * stride_wn).to(tl.float32)
            b_share = tl.where(mass > 0, b_w / tl.where(mass > 0, mass, 1.0), b_share)
        p_row = p_x + b * stride_b + o_i[:, None] * stride_n + o_d[None, :] * stride_d
        b_x = tl.load(p_row, mask=(o_d < d)[None, :], other=0.0).to(tl.float32)
        if CENTERED:
            b_x -= tl.load(p_offset + b * d + o_d, mask=o_d < d, other=0.0)[None, :]
        b_mean += tl.sum(b_x * b_share[:, None], 0)
    tl.store(p_mean + chunk * d + o_d, b_mean, mask=o_d < d)
    if WEIGHTED:
        # Benign race: every block of channels stores the same mass.
        tl.store(p_mass + chunk, mass)


@triton.jit(do_not_specialize=["n", "k", "chunks", "slots"], do_not_specialize_on_alignment=["p_moving"])
def segment_mean_kernel(
    p_x, p_weight, p_offset, p_factor, p_order, p_bounds, p_moving, p_chunk_mean, p_chunk_mass,
    p_out, p_low, p_norm, p_total, p_least, p_medoid, n, d, k, chunks, width, slots,
    stride_b, stride_n, stride_d, stride_wb, stride_wn,
    L: tl.constexpr, S: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
    WEIGHTED: tl.constexpr, CENTERED: tl.constexpr, GATED: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Means of the clusters; a program has BD channels of S clusters and reads R members of each at a time.

    MODE_TOKENS writes them [B, K, D] in the type of p_out and `total` [B, K]: W_s, minus the number of members where
    W_s is 0, 0 for a cluster without members, whose mean is 0. The other modes leave such a cluster as it is.
    MODE_CENTERS writes factor_b mu in halves [B, K, width] and each channel block's part of its squared norm, halved,
    [parts, slots = B K]. MODE_MEDOIDS writes mu in float32 and resets each cluster's least cost and medoid.
    """
    pid = tl.program_id(0).to(tl.int64)
    parts_d, groups = tl.cdiv(d, BD), tl.cdiv(k, S)
    part = pid % parts_d
    o_d = part.to(tl.int32) * BD + tl.arange(0, BD)
    m_d = o_d < d
    o_s = (pid // parts_d % groups).to(tl.int32) * S + tl.arange(0, S)
    m_s = o_s < k
    b = pid // (parts_d * groups)
    moving = 1
    if GATED:
        moving = tl.load(p_moving + b)
    if moving == 0:
        return
    p_weight += b * stride_wb
    p_begin = p_bounds + b * (k + 1) + o_s
    b_begin = (tl.load(p_begin, mask=m_s, other=0) - b * n).to(tl.int32)
    b_stop = (tl.load(p_begin + 1, mask=m_s, other=0) - b * n).to(tl.int32)
    b_count = tl.where(m_s, b_stop - b_begin, 0)
    # A cluster is whole chunks, and single members before the first and after the last of them.
    b_chunk = (b_begin + L - 1) // L
    b_whole = tl.where(m_s, tl.maximum(b_stop // L - b_chunk, 0), 0)
    b_head = tl.where(b_whole > 0, b_chunk * L - b_begin, b_count)
    b_single = tl.where(b_whole > 0, b_count - b_whole * L, b_count)
    b_skip = tl.where(b_whole > 0, b_whole * L, 0)
    singles, wholes = tl.max(b_single, 0), tl.max(b_whole, 0)

    b_mass = tl.zeros((S,), tl.float32)
    if WEIGHTED:
        for r in range(0, singles, R):
            o_r = r + tl.arange(0, R)[None, :]
            m_r = o_r < b_single[:, None]
            o_place = b_begin[:, None] + o_r + tl.where(o_r < b_head[:, None], 0, b_skip[:, None])
            o_i = tl.load(p_order + b * n + o_place, mask=m_r, other=0) - b * n
            b_mass += tl.sum(tl.load(p_weight + o_i * stride_wn, mask=m_r, other=0.0).to(tl.float32), 1)
        for r in range(0, wholes, R):
            o_r = r + tl.arange(0, R)[None, :]
            o_chunk = b * chunks + b_chunk[:, None] + o_r
            b_mass += tl.sum(tl.load(p_chunk_mass + o_chunk, mask=o_r < b_whole[:, None], other=0.0), 1)
    m_weighs = b_mass > 0
    # A single member is its own mean to the last bit, however the device divides.
    b_equal = tl.where(b_count > 1, 1.0 / tl.maximum(b_count, 1).to(tl.float32), 1.0)
    b_total = tl.where(m_weighs, b_mass, 1.0)
    m_weighs = (m_weighs & (b_count > 1))[:, None]

    b_mean = tl.zeros((S, BD), tl.float32)
    for r in range(0, singles, R):
        o_r = r + tl.arange(0, R)[None, :]
        m_r = o_r < b_single[:, None]
        o_place = b_begin[:, None] + o_r + tl.where(o_r < b_head[:, None], 0, b_skip[:, None])
        o_i = tl.load(p_order + b * n + o_place, mask=m_r, other=0) - b * n
        b_share = tl.where(m_r, b_equal[:, None], 0.0)
        if WEIGHTED:
            b_w = tl.load(p_weight + o_i * stride_wn, mask=m_r, other=0.0).to(tl.float32)
            b_share = tl.where(m_weighs, b_w / b_total[:, None], b_share)
        p_row = p_x + b * stride_b + o_i[:, :, None] * stride_n + o_d[None, None, :] * stride_d
        b_x = tl.load(p_row, mask=m_r[:, :, None] & m_d[None, None, :], other=0.0).to(tl.float32)
        if CENTERED:
            b_x -= tl.load(p_offset + b * d + o_d, mask=m_d, other=0.0)[None, None, :]
        b_mean += tl.sum(b_x * b_share[:, :, None], 1)
    for r in range(0, wholes, R):
        o_r = r + tl.arange(0, R)[None, :]
        m_r = o_r < b_whole[:, None]
        o_chunk = b * chunks + b_chunk[:, None] + o_r
        b_share = tl.where(m_r, b_equal[:, None] * L, 0.0)
        if WEIGHTED:
            b_w = tl.load(p_chunk_mass + o_chunk, mask=m_r, other=0.0)
            b_share = tl.where(m_weighs, b_w / b_total[:, None], b_share)
        p_row = p_chunk_mean + o_chunk[:, :, None] * d + o_d[None, None, :]
        b_x = tl.load(p_row, mask=m_r[:, :, None] & m_d[None, None, :], other=0.0)
        b_mean += tl.sum(b_x * b_share[:, :, None], 1)

    o_row = b * k + o_s
    m_live = m_s & (b_count > 0)
    if MODE == MODE_CENTERS:
        b_mean *= tl.load(p_factor + b)
        b_high, b_low = split_halves(b_mean)
        o_out = o_row[:, None] * width + o_d[None, :]
        tl.store(p_out + o_out, b_high, mask=m_live[:, None] & m_d[None, :])
        tl.store(p_low + o_out, b_low, mask=m_live[:, None] & m_d[None, :])
        tl.store(p_norm + part * slots + o_row, tl.sum(b_mean * b_mean, 1) / 2, mask=m_live)
    else:
        o_out = o_row[:, None] * d + o_d[None, :]
        m_out = m_s if MODE == MODE_TOKENS else m_live
        tl.store(p_out + o_out, b_mean.to(p_out.dtype.element_ty), mask=m_out[:, None] & m_d[None, :])
        if part == 0:
            if MODE == MODE_TOKENS:
                b_members = b_count.to(tl.float32)
                if WEIGHTED:
                    b_members = tl.where(b_mass > 0, b_mass, -b_members)
                tl.store(p_total + o_row, b_members, mask=m_s)
            else:
                tl.store(p_least + o_row, tl.full((S,), INFINITE_BITS, tl.int32), mask=m_live)
                tl.store(p_medoid + o_row, tl.zeros((S,), tl.int32) + n, mask=m_live)


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
