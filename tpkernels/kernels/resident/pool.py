"""The pooled tokens of one sample, from the sorted members that `cluster.py` leaves in scratch."""

import triton
import triton.language as tl

from ..tokens import load_tokens
from .codes import METHOD_KMEANS, METHOD_KMEDOIDS, OUTPUT_CENTER, OUTPUT_MEDOID
from .means import segment_means
from .scratch import integers


@triton.jit
def _fill_empty(
    p_x, p_tokens, p_pool, p_first, p_token, p_stamp, p_history, n, k, first_d, last_d, d, stride_n, stride_d,
    NP: tl.constexpr, S: tl.constexpr, BD: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Writes the rows of slots without members: zeros, or with KEEP the mean of the slot's last update with members."""
    for s in range(k):
        if tl.load(p_first + s) == tl.load(p_first + s + 1):
            slot = tl.load(p_token + s) if KEEP else 0
            p_from = p_history + (tl.load(p_stamp + slot) if KEEP else 0) * NP
            total = 1.0
            equal = 0.0
            if KEEP:
                o_n = tl.arange(0, NP)
                m_in = tl.load(p_from + o_n, mask=o_n < n, other=-1) == slot
                total = tl.sum(tl.where(m_in, tl.load(p_pool + o_n, mask=o_n < n, other=0.0), 0.0), 0)
                equal = tl.where(total == 0, 1.0, 0.0)
                total = tl.where(total == 0, tl.maximum(tl.sum(m_in.to(tl.float32), 0), 1.0), total)
            for c in range(first_d, last_d, BD):
                o_d = c + tl.arange(0, BD)
                b_mean = tl.zeros((BD,), tl.float32)
                if KEEP:
                    for i in range(0, n, S):
                        o_i = i + tl.arange(0, S)
                        m_i = tl.load(p_from + o_i, mask=o_i < n, other=-1) == slot
                        b_share = (tl.load(p_pool + o_i, mask=m_i, other=0.0) + equal) / total
                        b_x = load_tokens(p_x, o_i, o_d, m_i, d, stride_n, stride_d)
                        b_mean += tl.sum(tl.where(m_i[:, None], b_share[:, None] * b_x, 0.0), 0)
                o_out = tl.full((), 0, tl.int64) + s * d + o_d
                tl.store(p_tokens + o_out, b_mean.to(p_tokens.dtype.element_ty), mask=o_d < last_d)


@triton.jit
def pool_sample(
    p_x, p_tokens, p_floats, p_ints, n, first_d, last_d, d, k, stride_n, stride_d,
    NP: tl.constexpr, KP: tl.constexpr, S: tl.constexpr, P: tl.constexpr, METHOD: tl.constexpr,
    OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes channels first_d..last_d of the pooled tokens [K, D]."""
    p_label, p_order, p_first, p_token, _, p_stamp, _, _, p_history = integers(p_ints, NP, KP)
    if OUTPUT == OUTPUT_MEDOID or (METHOD == METHOD_KMEDOIDS and OUTPUT == OUTPUT_CENTER):
        for s in range(0, k, S):
            o_s = s + tl.arange(0, S)
            b_m = tl.load(p_token + o_s, mask=o_s < k, other=NP)
            for c in range(first_d, last_d, P):
                o_d = c + tl.arange(0, P)
                b_x = load_tokens(p_x, b_m, o_d, b_m < NP, last_d, stride_n, stride_d)
                o_out = o_s.to(tl.int64)[:, None] * d + o_d[None, :]
                m_out = (o_s < k)[:, None] & (o_d < last_d)[None, :]
                tl.store(p_tokens + o_out, b_x.to(p_tokens.dtype.element_ty), mask=m_out)
    else:
        p_pool = p_floats + NP
        p_total = p_floats + 11 * NP + KP
        segment_means(
            p_x, p_label, p_pool, p_order, p_first, p_total, p_tokens, tl.load(p_first + k), first_d, last_d,
            stride_n, stride_d, d, S, P, PRECISION, True,
        )  # fmt: skip
        o_k = tl.arange(0, KP)
        b_first = tl.load(p_first + o_k, mask=o_k < k, other=-1)
        b_next = tl.load(p_first + o_k + 1, mask=o_k < k, other=-2)
        if tl.sum((b_first == b_next).to(tl.int32), 0) > 0:
            _fill_empty(
                p_x, p_tokens, p_pool, p_first, p_token, p_stamp, p_history, n, k, first_d, last_d, d,
                stride_n, stride_d, NP, S, P, METHOD == METHOD_KMEANS and OUTPUT == OUTPUT_CENTER,
            )  # fmt: skip
