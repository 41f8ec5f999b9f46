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
from .blocks import LOG2E, finish, load_keys, load_rows, product, query_weight, store_rows


@triton.jit(do_not_specialize=["n", "heads", "turns"])
def attend_rows_kernel(
    p_q, p_k, p_v, p_size, p_mask, p_out, p_lse, p_partial, n, heads, d, e, turns, scale,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn,
    stride_vb, stride_vh, stride_vn, stride_ob, stride_oh, stride_on,
    stride_sb, stride_sn, stride_mb, stride_mn,
    BM: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, SIZED: tl.constexpr,
    MASKED: tl.constexpr, RECEIVED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Out [B, H, N, e], lse [B, H, N] and partial sums [B, H, programs, N] of blocks of BM queries against all keys.

    A program keeps a head's keys and values for `turns` blocks, one or all: `sum_parts_kernel` adds as this loop does.
    A row is N1 keys and N2 more, two powers of two (N2 may be 0): 138 keys take 128 + 16, not 256.
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
    o_d = tl.arange(0, BD)
    o_e = tl.arange(0, BE)
    o_1 = tl.arange(0, N1)
    m_1, b_bias1 = load_keys(p_size, p_mask, o_1, n, stride_sn, stride_mn, SIZED, MASKED)
    b_k1 = load_rows(p_k, o_1, m_1, o_d, d, stride_kn, UNIT)
    b_v1 = load_rows(p_v, o_1, m_1, o_e, e, stride_vn, UNIT)
    if N2 > 0:
        o_2 = N1 + tl.arange(0, N2)
        m_2, b_bias2 = load_keys(p_size, p_mask, o_2, n, stride_sn, stride_mn, SIZED, MASKED)
        b_k2 = load_rows(p_k, o_2, m_2, o_d, d, stride_kn, UNIT)
        b_v2 = load_rows(p_v, o_2, m_2, o_e, e, stride_vn, UNIT)
        b_received2 = tl.zeros((N2,), tl.float32)
    b_received1 = tl.zeros((N1,), tl.float32)
    first = (pid % programs).to(tl.int32) * turns
    for block in tl.range(first, tl.minimum(first + turns, blocks), disable_licm=True):
        o_m = block * BM + tl.arange(0, BM)
        m_m = valid_tokens(p_mask, o_m, n, stride_mn, MASKED)
        b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
        b_1 = product(b_q, tl.trans(b_k1), None, PRECISION, WIDEN) * (scale * LOG2E) + b_bias1[None, :]
        b_max = tl.max(b_1, 1)
        if N2 > 0:
            b_2 = product(b_q, tl.trans(b_k2), None, PRECISION, WIDEN) * (scale * LOG2E) + b_bias2[None, :]
            b_max = tl.maximum(b_max, tl.max(b_2, 1))
        # A row without keys has maximum -inf, and -inf less -inf is NaN.
        b_max = tl.where(b_max == float("-inf"), 0.0, b_max)
        b_1 = tl.exp2(b_1 - b_max[:, None])
        b_sum = tl.sum(b_1, 1)
        if N2 > 0:
            b_2 = tl.exp2(b_2 - b_max[:, None])
            b_sum += tl.sum(b_2, 1)
        b_inverse, b_lse = finish(b_max, b_sum, m_m)
        tl.store(p_lse + bh * n + o_m, b_lse, mask=o_m < n)
        if RECEIVED:
            b_share = (query_weight(p_size, o_m, m_m, stride_sn, SIZED) * b_inverse)[:, None]
            b_received1 += tl.sum(b_1 * b_share, 0)
            if N2 > 0:
                b_received2 += tl.sum(b_2 * b_share, 0)
        b_out = product(b_1.to(b_v1.dtype), b_v1, None, PRECISION, WIDEN)
        if N2 > 0:
            b_out = product(b_2.to(b_v2.dtype), b_v2, b_out, PRECISION, WIDEN)
        b_out = tl.where(m_m[:, None], b_out * b_inverse[:, None], 0.0)
        store_rows(p_out, b_out, o_m, o_m < n, o_e, e, stride_on, UNIT)
    if RECEIVED:
        tl.store(p_partial + pid * n + o_1, b_received1, mask=o_1 < n)
        if N2 > 0:
            tl.store(p_partial + pid * n + o_2, b_received2, mask=o_2 < n)


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
