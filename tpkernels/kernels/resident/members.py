"""The members of each slot: tokens sorted by label once, after which a slot's members are a run of places.

Clusters have two members on average where half of the tokens are kept, so that going through the members of all slots
at once, the first of each, then the second, takes as many steps as the largest cluster has members.
"""

import triton
import triton.language as tl

from ..tokens import load_tokens
from .order import ascending


@triton.jit
def sort_members(s, z, tile):
    """Writes the tokens sorted by (label, index) [N], and where each slot begins and ends in that order [K]."""
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    o_k = tl.arange(0, tile.KP)
    b_label = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
    # Tokens without a label sort last.
    b_key = ascending(tl.where(b_label >= 0, b_label, z.k) * NP + o_n, NP)
    b_slot = b_key // NP
    tl.store(s.order + o_n, b_key & (NP - 1))
    tl.store(s.other + o_n, b_slot)
    tl.store(s.begin + o_k, tl.zeros((tile.KP,), tl.int32))
    tl.store(s.end + o_k, tl.zeros((tile.KP,), tl.int32))
    tl.debug_barrier()
    m_in = b_slot < z.k
    m_first = m_in & (tl.load(s.other + o_n - 1, mask=o_n > 0, other=-1) != b_slot)
    m_last = m_in & (tl.load(s.other + o_n + 1, mask=o_n < NP - 1, other=-1) != b_slot)
    tl.store(s.begin + b_slot, o_n, mask=m_first)
    tl.store(s.end + b_slot, o_n + 1, mask=m_last)
    tl.debug_barrier()


@triton.jit
def slot_totals(p_weight, m_wanted, s, z, tile, WEIGHTED: tl.constexpr):
    """Writes the total [K] of weights [N] of each wanted slot: their sum over its members; minus the number of members
    where that is 0, and members count equally.
    """
    o_k = tl.arange(0, tile.KP)
    b_begin = tl.load(s.begin + o_k)
    b_count = tl.where(m_wanted, tl.load(s.end + o_k) - b_begin, 0)
    b_total = b_count.to(tl.float32)
    if WEIGHTED:
        b_mass = tl.zeros((tile.KP,), tl.float32)
        for step in tl.range(0, tl.max(b_count, 0), num_stages=1):
            m_in = step < b_count
            b_token = tl.load(s.order + b_begin + step, mask=m_in, other=0)
            b_mass += tl.load(p_weight + b_token, mask=m_in, other=0.0)
        # A mass of NaN is kept: it must not count as 0.
        b_total = tl.where(b_mass == 0, -b_total, b_mass)
    tl.store(s.total + o_k, b_total, mask=m_wanted)
    tl.debug_barrier()


@triton.jit
def sort_slots(m_wanted, s, tile):
    """Writes the wanted slots that have members by falling number of these, so that slots that are walked together end
    together; returns how many they are.
    """
    KP: tl.constexpr = tile.KP
    o_k = tl.arange(0, KP)
    b_count = tl.where(m_wanted, tl.load(s.end + o_k) - tl.load(s.begin + o_k), 0)
    tl.store(s.by_size + o_k, ascending(o_k - b_count * KP, KP) & (KP - 1))
    tl.debug_barrier()
    return tl.sum((b_count > 0).to(tl.int32), 0)


@triton.jit
def member_means(
    p_rows, p_weight, p_place, p_out, slots, s, first_d, last_d, stride_n, stride_d, stride_out, z, tile,
    WEIGHTED: tl.constexpr, FINITE: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Writes channels first_d..last_d of the means of p_rows [N, D] over the members of the slots by_size[..slots], at
    the slots' places, after `sort_members`, `slot_totals` and `sort_slots`.

    NaN or infinity in a row reach the mean of their own slot alone; FINITE: there are none, and rows may be read to the
    end of a block.
    """
    S: tl.constexpr = tile.S
    for t in range(0, slots, S):
        m_t = t + tl.arange(0, S) < slots
        b_slot = tl.load(s.by_size + t + tl.arange(0, S), mask=m_t, other=0)
        b_begin = tl.load(s.begin + b_slot)
        b_count = tl.where(m_t, tl.load(s.end + b_slot) - b_begin, 0)
        b_total = tl.load(s.total + b_slot)
        b_place = tl.load(p_place + b_slot)
        # A single member is its own mean to the last bit, whatever a quotient rounds.
        b_equal = (b_total < 0) | (b_count == 1)
        b_scale = tl.where(b_count == 1, 1.0, tl.abs(b_total))
        b_share = 1.0 / b_scale
        most = tl.max(b_count, 0)
        for c in range(first_d, last_d, P):
            o_d = c + tl.arange(0, P)
            b_mean = tl.zeros((S, P), tl.float32)
            # No pipelining: a load of scratch that is issued ahead could pass a barrier.
            for step in tl.range(0, most, num_stages=1):
                m_in = step < b_count
                b_token = tl.load(s.order + b_begin + step, mask=m_in, other=0)
                if FINITE:
                    b_x = tl.load(p_rows + b_token[:, None] * stride_n + o_d[None, :])
                else:
                    b_x = load_tokens(p_rows, b_token, o_d, m_in, last_d, stride_n, stride_d)
                if WEIGHTED:
                    b_weight = tl.load(p_weight + b_token, mask=m_in, other=0.0)
                    b_share = tl.where(b_equal, 1.0, b_weight) / b_scale
                # Shares are added, since the sum of tokens may overflow where their mean does not.
                b_mean += tl.where(m_in, b_share, 0.0)[:, None] * b_x
            o_out = b_place.to(tl.int64)[:, None] * stride_out + o_d[None, :]
            m_out = (b_count > 0)[:, None] & (o_d < last_d)[None, :]
            tl.store(p_out + o_out, b_mean.to(p_out.dtype.element_ty), mask=m_out)
