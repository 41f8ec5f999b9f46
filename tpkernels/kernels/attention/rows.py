"""Softmax attention and what each key received of it, without any tensor of N x N in device memory.

    p_ij = softmax_j(scale q_i . k_j + log size_j)      out_i = sum_j p_ij v_j
    received_j = sum_heads sum_i size_i p_ij            lse_i = log2 sum_j size_j exp(scale q_i . k_j)

Short rows, here: a program holds its queries' logits against all keys at once, so that the columns of softmax are
summed where they are made. Long rows: `stream.py`. Column sums of a head go to memory in one part or more, and one more
kernel adds parts and heads in order: no atomics, the same bits every time.
"""

import triton
import triton.language as tl

from ..tokens import valid_tokens
from .blocks import LOG2E, finish, load_keys, load_rows, product, query_weight, store_rows, valid_rows


@triton.jit
def _apart(b_x, W: tl.constexpr):
    """A block [BM, columns] as [BM, columns / W, W]."""
    return tl.reshape(b_x, (b_x.shape[0], b_x.shape[1] // W, W))


@triton.jit
def _reduced(b_x, SUM: tl.constexpr):
    """The sums along the second axis, or the maxima."""
    return tl.sum(b_x, 1) if SUM else tl.max(b_x, 1)


@triton.jit
def _joined(b_x, b_y, SUM: tl.constexpr):
    """The sum of two, or their maximum."""
    return b_x + b_y if SUM else tl.maximum(b_x, b_y)


@triton.jit
def _along_rows(b_parts, APART: tl.constexpr, SUM: tl.constexpr):
    """Each row's sum over several blocks of columns, or its maximum."""
    b_wide = b_parts[0]
    # Columns that are APART lie in one lane: wide blocks become one before lanes exchange anything.
    for i in tl.static_range(1, len(b_parts)):
        if b_parts[i].shape[1] >= APART:
            b_wide = _joined(_reduced(_apart(b_wide, b_parts[i].shape[1]), SUM), b_parts[i], SUM)
    b_row = _reduced(b_wide, SUM)
    for i in tl.static_range(1, len(b_parts)):
        if b_parts[i].shape[1] < APART:
            b_row = _joined(b_row, _reduced(b_parts[i], SUM), SUM)
    return b_row


@triton.jit(do_not_specialize=["n", "heads", "turns"])
def attend_rows_kernel(
    p_q, p_k, p_v, p_size, p_mask, p_out, p_lse, p_partial, n, heads, d, e, turns, scale,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_ob, stride_oh, stride_on,
    stride_sb, stride_sn, stride_mb, stride_mn,
    BM: tl.constexpr, PARTS: tl.constexpr, APART: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    SIZED: tl.constexpr, MASKED: tl.constexpr, RECEIVED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Out [B, H, N, e], lse [B, H, N] and partial sums [B, H, programs, N] of blocks of BM queries against all keys.

    A program keeps a head's keys and values for `turns` blocks, one or all: `sum_parts_kernel` adds as this loop does.
    PARTS: where each part of a row begins, and its keys. scale is above 0: a row's maximum is that of its products.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BM)
    programs = tl.cdiv(blocks, turns)
    bh = pid // programs
    b = bh // heads
    h = bh % heads
    p_q += (b * stride_qb + h * stride_qh) * UNIT
    p_k += (b * stride_kb + h * stride_kh) * UNIT
    p_v += (b * stride_vb + h * stride_vh) * UNIT
    p_out += (b * stride_ob + h * stride_oh) * UNIT
    p_size += b * stride_sb
    p_mask += b * stride_mb
    slope = scale * LOG2E
    o_d = tl.arange(0, BD)
    o_e = tl.arange(0, BE)
    o_row = tl.arange(0, BM)
    b_k, b_v, b_bias, b_received = (), (), (), ()
    for i in tl.static_range(len(PARTS)):
        o_n = PARTS[i][0] + tl.arange(0, PARTS[i][1])
        m_n = valid_rows(p_mask, o_n, n, stride_mn, MASKED)
        m_n, b_size = load_keys(p_size, o_n, m_n, stride_sn, SIZED)
        b_k += (load_rows(p_k, o_n, m_n, o_d, d, stride_kn, UNIT),)
        b_v += (load_rows(p_v, o_n, m_n, o_e, e, stride_vn, UNIT),)
        b_bias += (b_size * (1.0 / slope),)
        b_received += (tl.zeros_like(b_size),)
    first = (pid % programs).to(tl.int32) * turns
    for block in tl.range(first, tl.minimum(first + turns, blocks), disable_licm=True):
        o_m = block * BM + o_row
        m_m = valid_rows(p_mask, o_m, n, stride_mn, MASKED)
        b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
        b_s = ()
        for i in tl.static_range(len(PARTS)):
            b_start = None
            # Without sizes and masks all keys count but some of the last.
            if SIZED or MASKED or i == len(PARTS) - 1:
                b_start = tl.broadcast_to(b_bias[i][None, :], (BM, b_bias[i].shape[0]))
            b_s += (product(b_q, tl.trans(b_k[i]), b_start, PRECISION, WIDEN),)
        b_max = _along_rows(b_s, APART, False) * slope
        if SIZED or MASKED:
            # A row without keys has maximum -inf, and -inf less -inf is NaN.
            b_max = tl.where(b_max == float("-inf"), 0.0, b_max)
        b_p = ()
        for i in tl.static_range(len(PARTS)):
            b_p += (tl.exp2(b_s[i] * slope - b_max[:, None]),)
        b_sum = _along_rows(b_p, APART, True)
        # Lanes hold copies of several rows' sums: of each row one lane takes logarithm and inverse, and passes it on.
        b_inverse, b_lse = finish(tl.gather(b_max, o_row, 0), tl.gather(b_sum, o_row, 0), m_m)
        tl.store(p_lse + bh * n + o_m, b_lse, mask=o_m < n)
        if RECEIVED:
            b_share = b_inverse * query_weight(p_size, o_m, m_m, stride_sn, SIZED)
            b_share = tl.gather(b_share, o_row, 0)[:, None]
            b_more = ()
            for i in tl.static_range(len(PARTS)):
                b_more += (b_received[i] + tl.sum(b_p[i] * b_share, 0),)
            b_received = b_more
        b_out = None
        for i in tl.static_range(len(PARTS)):
            b_out = product(b_p[i].to(b_v[i].dtype), b_v[i], b_out, PRECISION, WIDEN)
        b_out *= tl.gather(b_inverse, o_row, 0)[:, None]
        if MASKED:
            b_out = tl.where(m_m[:, None], b_out, 0.0)
        store_rows(p_out, b_out, o_m, o_m < n, o_e, e, stride_on, UNIT)
    if RECEIVED:
        for i in tl.static_range(len(PARTS)):
            o_n = PARTS[i][0] + tl.arange(0, PARTS[i][1])
            tl.store(p_partial + pid * n + o_n, b_received[i], mask=o_n < n)


@triton.jit(do_not_specialize=["n", "heads", "parts"])
def sum_parts_kernel(
    p_partial, p_mask, p_sum, n, heads, parts, stride_mb, stride_mn,
    R: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sum [B, N] of partial sums [B, H, parts, N], zero for invalid tokens; a program has BN tokens.

    Parts of a head are added in order: the bits are those of one program that loops over the whole head.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BN)
    b = pid // blocks
    o_n = (pid % blocks).to(tl.int32) * BN + tl.arange(0, BN)
    p_partial += b * heads * parts * n
    b_sum = tl.zeros((BN,), tl.float32)
    for first in range(0, heads, R):
        o_h = first + tl.arange(0, R)
        m = (o_h < heads)[:, None] & (o_n < n)[None, :]
        p_part = p_partial + o_h.to(tl.int64)[:, None] * parts * n + o_n[None, :]
        b_head = tl.zeros((R, BN), tl.float32)
        for _ in range(parts):
            b_head += tl.load(p_part, mask=m, other=0.0)
            p_part += n
        b_sum += tl.sum(b_head, 0)
    m_n = valid_tokens(p_mask + b * stride_mb, o_n, n, stride_mn, MASKED)
    tl.store(p_sum + b * n + o_n, tl.where(m_n, b_sum, 0.0), mask=o_n < n)
