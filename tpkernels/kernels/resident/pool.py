"""The pooled tokens of one sample, from the sorted members that `cluster.py` leaves in scratch."""

import triton
import triton.language as tl

from ..tokens import load_tokens
from .codes import METHOD_KMEANS, METHOD_KMEDOIDS, OUTPUT_CENTER, OUTPUT_MEDOID
from .members import member_means


@triton.jit
def _fill_empty(p_tokens, first_d, last_d, s, z, tile):
    """Writes zeros to the rows of slots without members."""
    S: tl.constexpr = tile.S
    P: tl.constexpr = tile.P
    for t in range(0, z.k, S):
        o_t = t + tl.arange(0, S)
        m_empty = (o_t < z.k) & (tl.load(s.begin + o_t) == tl.load(s.end + o_t))
        for c in range(first_d, last_d, P):
            o_d = c + tl.arange(0, P)
            o_zero = o_t.to(tl.int64)[:, None] * z.d + o_d[None, :]
            b_zero = tl.zeros((S, P), p_tokens.dtype.element_ty)
            tl.store(p_tokens + o_zero, b_zero, mask=m_empty[:, None] & (o_d < last_d)[None, :])
    tl.debug_barrier()


@triton.jit
def _keep_centers(p_x, p_tokens, first_d, last_d, s, z, strides, tile):
    """Writes the rows of K-Means' slots that lost their members: the mean of the last update with members."""
    NP: tl.constexpr = tile.NP
    S: tl.constexpr = tile.S
    P: tl.constexpr = tile.P
    for place in range(z.k):
        slot = tl.load(s.token + place)
        # A slot that never had members has no place among the centers.
        if (tl.load(s.begin + place) == tl.load(s.end + place)) & (tl.load(s.square + slot) < float("inf")):
            p_from = s.history + tl.load(s.stamp + slot) * NP
            o_n = tl.arange(0, NP)
            m_in = tl.load(p_from + o_n, mask=o_n < z.n, other=-1) == slot
            total = tl.sum(tl.where(m_in, tl.load(s.pool + o_n, mask=o_n < z.n, other=0.0), 0.0), 0)
            equal = tl.where(total == 0, 1.0, 0.0)
            total = tl.where(total == 0, tl.maximum(tl.sum(m_in.to(tl.float32), 0), 1.0), total)
            for c in range(first_d, last_d, P):
                o_d = c + tl.arange(0, P)
                b_mean = tl.zeros((P,), tl.float32)
                for i in range(0, z.n, S):
                    o_i = i + tl.arange(0, S)
                    m_i = tl.load(p_from + o_i, mask=o_i < z.n, other=-1) == slot
                    b_share = (tl.load(s.pool + o_i, mask=m_i, other=0.0) + equal) / total
                    b_x = load_tokens(p_x, o_i, o_d, m_i, z.d, strides.n, strides.d)
                    b_mean += tl.sum(tl.where(m_i[:, None], b_share[:, None] * b_x, 0.0), 0)
                o_out = tl.full((), 0, tl.int64) + place * z.d + o_d
                tl.store(p_tokens + o_out, b_mean.to(p_tokens.dtype.element_ty), mask=o_d < last_d)


@triton.jit
def pool_sample(p_x, p_tokens, first_d, last_d, s, z, strides, kind, tile):
    """Writes channels first_d..last_d of the pooled tokens [K, D]."""
    P: tl.constexpr = tile.P
    S: tl.constexpr = tile.S
    if kind.OUTPUT == OUTPUT_MEDOID or (kind.METHOD == METHOD_KMEDOIDS and kind.OUTPUT == OUTPUT_CENTER):
        for t in range(0, z.k, S):
            o_t = t + tl.arange(0, S)
            b_m = tl.load(s.token + o_t, mask=o_t < z.k, other=tile.NP)
            for c in range(first_d, last_d, P):
                o_d = c + tl.arange(0, P)
                b_x = load_tokens(p_x, b_m, o_d, b_m < tile.NP, last_d, strides.n, strides.d)
                o_out = o_t.to(tl.int64)[:, None] * z.d + o_d[None, :]
                m_out = (o_t < z.k)[:, None] & (o_d < last_d)[None, :]
                tl.store(p_tokens + o_out, b_x.to(p_tokens.dtype.element_ty), mask=m_out)
    else:
        o_k = tl.arange(0, tile.KP)
        b_live = (tl.load(s.end + o_k) > tl.load(s.begin + o_k)).to(tl.int32)
        slots = tl.sum(b_live, 0)
        member_means(
            p_x, p_tokens, slots, s, first_d, last_d, strides.n, strides.d, z.d, z, tile,
            kind.POOL_WEIGHTED, False, P,
        )  # fmt: skip
        if slots < z.k:
            _fill_empty(p_tokens, first_d, last_d, s, z, tile)
            if kind.METHOD == METHOD_KMEANS and kind.OUTPUT == OUTPUT_CENTER:
                _keep_centers(p_x, p_tokens, first_d, last_d, s, z, strides, tile)
