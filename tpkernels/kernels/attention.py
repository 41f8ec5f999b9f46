"""Softmax attention and what each key received of it, without any tensor of N x N in device memory.

    p_ij = softmax_j(scale q_i . k_j + log size_j)      out_i = sum_j p_ij v_j
    received_j = sum_heads sum_i size_i p_ij            lse_i = log2 sum_j size_j exp(scale q_i . k_j)

Short rows, here: a program holds its queries' logits against all keys at once, so that the columns of softmax are
summed where they are made. Long rows: see `attention_stream`. Column sums of a head go to memory, in one part or more,
and one more kernel adds parts and heads in their order: no atomics, the same bits every time.

Dropped keys (masked, or of size 0) are loaded as zeros, whatever they hold. Queries that are not there, or have no
keys, get lse = +inf: every later exp2(logit - lse) is 0.
"""

import triton
import triton.language as tl

from .tokens import valid_tokens

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def product(b_a, b_b, b_sum, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """b_sum + b_a b_b, or without a sum where that is None; WIDEN: see `tokens`."""
    if WIDEN:
        return tl.dot(b_a.to(tl.float32), b_b.to(tl.float32), b_sum, input_precision="ieee")
    else:
        return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)


@triton.jit
def _places(o_n, m_n, o_d, d, stride_n, UNIT: tl.constexpr):
    """Offsets of rows and channels, and which of them are there; d and stride_n count UNIT channels, a vector's."""
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

    Split in three, whole rows of float32 are more than a thread's registers can hold.
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
def load_keys(p_size, p_mask, o_n, n, stride_sn, stride_mn, SIZED: tl.constexpr, MASKED: tl.constexpr):
    """Which keys count, and the log2 of their sizes, -inf for those that do not."""
    m_n = valid_tokens(p_mask, o_n, n, stride_mn, MASKED)
    if SIZED:
        b_size = tl.load(p_size + o_n.to(tl.int64) * stride_sn, mask=m_n, other=0.0).to(tl.float32)
        m_n = m_n & (b_size != 0)
        b_bias = tl.log2(b_size)
    else:
        b_bias = tl.zeros(o_n.shape, tl.float32)
    return m_n, tl.where(m_n, b_bias, float("-inf"))


@triton.jit
def query_weight(p_size, o_m, m_m, stride_sn, SIZED: tl.constexpr):
    """How often each query counts, 0 for those that are not there."""
    if SIZED:
        b_weight = tl.load(p_size + o_m.to(tl.int64) * stride_sn, mask=m_m, other=0.0).to(tl.float32)
    else:
        b_weight = m_m.to(tl.float32)
    return b_weight


@triton.jit
def finish(b_most, b_sum, m_m):
    """1 over the sums of rows, 0 for a row without keys, and lse; NaN stays."""
    m_none = (b_sum == 0) | (m_m == 0)
    b_inverse = tl.where(b_sum == 0, 0.0, 1.0 / b_sum)
    b_lse = tl.where(m_none, float("inf"), b_most + tl.log2(b_sum))
    return b_inverse, b_lse


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
    A row has N1 keys and N2 more (none where that is 0): 144 = 128 + 16, where one power of two would be 256.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(n, BM)
    programs = tl.cdiv(blocks, turns)
    line = pid // programs
    b = line // heads
    h = line % heads
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
        b_got2 = tl.zeros((N2,), tl.float32)
    b_got1 = tl.zeros((N1,), tl.float32)
    first = (pid % programs).to(tl.int32) * turns
    for block in tl.range(first, tl.minimum(first + turns, blocks), disable_licm=True):
        o_m = block * BM + tl.arange(0, BM)
        m_m = valid_tokens(p_mask, o_m, n, stride_mn, MASKED)
        b_q = load_rows(p_q, o_m, m_m, o_d, d, stride_qn, UNIT)
        b_1 = product(b_q, tl.trans(b_k1), None, PRECISION, WIDEN) * (scale * LOG2E) + b_bias1[None, :]
        b_most = tl.max(b_1, 1)
        if N2 > 0:
            b_2 = product(b_q, tl.trans(b_k2), None, PRECISION, WIDEN) * (scale * LOG2E) + b_bias2[None, :]
            b_most = tl.maximum(b_most, tl.max(b_2, 1))
        # Without keys the largest logit is -inf, which is not to be taken from itself.
        b_most = tl.where(b_most == float("-inf"), 0.0, b_most)
        b_1 = tl.exp2(b_1 - b_most[:, None])
        b_sum = tl.sum(b_1, 1)
        if N2 > 0:
            b_2 = tl.exp2(b_2 - b_most[:, None])
            b_sum += tl.sum(b_2, 1)
        b_inverse, b_lse = finish(b_most, b_sum, m_m)
        tl.store(p_lse + line * n + o_m, b_lse, mask=o_m < n)
        if RECEIVED:
            b_share = (query_weight(p_size, o_m, m_m, stride_sn, SIZED) * b_inverse)[:, None]
            b_got1 += tl.sum(b_1 * b_share, 0)
            if N2 > 0:
                b_got2 += tl.sum(b_2 * b_share, 0)
        b_out = product(b_1.to(b_v1.dtype), b_v1, None, PRECISION, WIDEN)
        if N2 > 0:
            b_out = product(b_2.to(b_v2.dtype), b_v2, b_out, PRECISION, WIDEN)
        b_out = tl.where(m_m[:, None], b_out * b_inverse[:, None], 0.0)
        store_rows(p_out, b_out, o_m, o_m < n, o_e, e, stride_on, UNIT)
    if RECEIVED:
        tl.store(p_partial + pid * n + o_1, b_got1, mask=o_1 < n)
        if N2 > 0:
            tl.store(p_partial + pid * n + o_2, b_got2, mask=o_2 < n)


@triton.jit(do_not_specialize=["n", "heads", "parts"])
def sum_parts_kernel(
    p_partial, p_mask, p_sum, n, heads, parts, stride_mb, stride_mn,
    R: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sum [B, N] of partial sums [B, H, parts, N], zero for masked tokens; a program has BN tokens.

    The parts of a head are added one after the other, as a program adds that has the whole head.
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
