"""The members of each slot: tokens sorted by label once, after which a slot's members are a run of places.

Clusters have two members on average where half of the tokens are kept, so that going through the members of all slots
at once, the first of each, then the second, takes as many steps as the largest cluster has members.
"""

import triton
import triton.language as tl

from ..tokens import load_tokens
from .order import ascending
from .scratch import vector_part

# Members of a slot whose numbers are loaded at once, and of those the rows: a warp waits once for what it loads before
# it uses any, and compilers leave a masked load behind what comes before it.
AHEAD, ROWS_AHEAD = tl.constexpr(4), tl.constexpr(2)


@triton.jit
def sort_members(p_weight, s, z, tile, WEIGHTED: tl.constexpr):
    """Writes the tokens sorted by (label, index) [N], with their weights, and where each slot begins and ends [K]."""
    NP: tl.constexpr = tile.NP
    o_n = tl.arange(0, NP)
    o_k = tl.arange(0, tile.KP)
    b_label = tl.load(s.label + o_n, mask=o_n < z.n, other=-1)
    # Tokens without a label sort last.
    b_key = ascending(tl.where(b_label >= 0, b_label, z.k) * NP + o_n, NP)
    b_token = b_key & (NP - 1)
    tl.store(s.order + o_n, b_token)
    if WEIGHTED:
        tl.store(s.ordered_weight + o_n, tl.load(p_weight + b_token))
    tl.store(s.other + o_n, b_key // NP)
    tl.store(s.begin + o_k, tl.zeros((tile.KP,), tl.int32))
    tl.store(s.end + o_k, tl.zeros((tile.KP,), tl.int32))
    tl.debug_barrier()
    V: tl.constexpr = vector_part(NP)
    for first in tl.range(0, NP, V, num_stages=1):
        o_v = first + tl.arange(0, V)
        b_slot = tl.load(s.other + o_v)
        m_first = (b_slot < z.k) & (tl.load(s.other + o_v - 1, mask=o_v > 0, other=-1) != b_slot)
        m_last = (b_slot < z.k) & (tl.load(s.other + o_v + 1, mask=o_v < NP - 1, other=-1) != b_slot)
        tl.store(s.begin + b_slot, o_v, mask=m_first)
        tl.store(s.end + b_slot, o_v + 1, mask=m_last)
    tl.debug_barrier()


@triton.jit
def members_ahead(s, b_begin, first, z, tile, COUNT: tl.constexpr):
    """The members first.. of each slot, a tuple of COUNT tensors like b_begin; past its last member any token.

    Loads have no masks: those of as many steps would need more predicates than there are, and then compilers let each
    wait for the one before.
    """
    b_members = ()
    for step in tl.static_range(COUNT):
        b_members += (tl.minimum(tl.load(s.order + b_begin + first + step) & (tile.NP - 1), z.n - 1),)
    return b_members


@triton.jit
def weights_ahead(s, b_begin, first, COUNT: tl.constexpr):
    """The weights of the members first.. of each slot, as `members_ahead`; past its last member any number."""
    b_weights = ()
    for step in tl.static_range(COUNT):
        b_weights += (tl.load(s.ordered_weight + b_begin + first + step),)
    return b_weights


@triton.jit
def slot_totals(m_wanted, s, tile, WEIGHTED: tl.constexpr):
    """Writes the total weight [K] of wanted slots' members; minus their number where it is 0, and all count alike."""
    o_k = tl.arange(0, tile.KP)
    b_begin = tl.load(s.begin + o_k)
    b_count = tl.where(m_wanted, tl.load(s.end + o_k) - b_begin, 0)
    b_total = b_count.to(tl.float32)
    if WEIGHTED:
        b_mass = tl.zeros((tile.KP,), tl.float32)
        for first in tl.range(0, tl.max(b_count, 0), AHEAD, num_stages=1):
            b_weight = weights_ahead(s, b_begin, first, AHEAD)
            for step in tl.static_range(AHEAD):
                b_mass += tl.where(first + step < b_count, b_weight[step], 0.0)
        # A mass of NaN is kept: it must not count as 0.
        b_total = tl.where(b_mass == 0, -b_total, b_mass)
    tl.store(s.total + o_k, b_total, mask=m_wanted)
    tl.debug_barrier()


@triton.jit
def sort_slots(m_wanted, s, tile):
    """Writes begin, count, total and place of the wanted slots by falling number of members, so that slots that are
    walked together end together; returns how many have any. Of slots that are not wanted the count is 0.
    """
    KP: tl.constexpr = tile.KP
    o_k = tl.arange(0, KP)
    b_count = tl.where(m_wanted, tl.load(s.end + o_k) - tl.load(s.begin + o_k), 0)
    b_key = ascending(o_k - b_count * KP, KP)
    b_slot = b_key & (KP - 1)
    tl.store(s.sorted_begin + o_k, tl.load(s.begin + b_slot))
    tl.store(s.sorted_count + o_k, (b_slot - b_key) // KP)
    tl.store(s.sorted_place + o_k, tl.load(s.place + b_slot))
    tl.store(s.sorted_total + o_k, tl.load(s.total + b_slot))
    tl.debug_barrier()
    return tl.sum((b_count > 0).to(tl.int32), 0)


@triton.jit
def member_means(
    p_rows, p_out, slots, s, first_d, last_d, stride_n, stride_d, stride_out, z, tile,
    WEIGHTED: tl.constexpr, FINITE: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Writes channels first_d..last_d of the means of p_rows [N, D] over the members of so many sorted slots, at the
    slots' places, after `sort_members`, `slot_totals` and `sort_slots`.

    NaN or infinity in a row reach the mean of their own slot alone; FINITE: there are none, and rows may be read to the
    end of a block.
    """
    S: tl.constexpr = tile.S
    for t in range(0, slots, S):
        o_t = t + tl.arange(0, S)
        b_begin = tl.load(s.sorted_begin + o_t)
        b_count = tl.load(s.sorted_count + o_t)
        b_total = tl.load(s.sorted_total + o_t)
        b_place = tl.load(s.sorted_place + o_t)
        # A single member is its own mean to the last bit, whatever a quotient rounds.
        b_equal = (b_total < 0) | (b_count == 1)
        b_scale = tl.where(b_count == 1, 1.0, tl.abs(b_total))
        b_share = 1.0 / b_scale
        most = tl.max(b_count, 0)
        b_first = members_ahead(s, b_begin, 0, z, tile, ROWS_AHEAD)
        b_first_weight = weights_ahead(s, b_begin, 0, ROWS_AHEAD)
        for c in range(first_d, last_d, P):
            o_d = c + tl.arange(0, P)
            b_mean = tl.zeros((S, P), tl.float32)
            b_members = b_first
            b_weight = b_first_weight
            # Members are loaded a turn before their rows; most loops end after one turn, too soon for copies ahead.
            for first in tl.range(0, most, ROWS_AHEAD, num_stages=1):
                b_next = members_ahead(s, b_begin, first + ROWS_AHEAD, z, tile, ROWS_AHEAD)
                b_next_weight = weights_ahead(s, b_begin, first + ROWS_AHEAD, ROWS_AHEAD)
                b_rows = ()
                for step in tl.static_range(ROWS_AHEAD):
                    if FINITE:
                        b_rows += (tl.load(p_rows + b_members[step][:, None] * stride_n + o_d[None, :]),)
                    else:
                        m_in = first + step < b_count
                        b_rows += (load_tokens(p_rows, b_members[step], o_d, m_in, last_d, stride_n, stride_d),)
                for step in tl.static_range(ROWS_AHEAD):
                    if WEIGHTED:
                        b_share = tl.where(b_equal, 1.0, b_weight[step]) / b_scale
                    # Shares are added, since the sum of tokens may overflow where their mean does not.
                    b_mean += tl.where(first + step < b_count, b_share, 0.0)[:, None] * b_rows[step]
                b_members = b_next
                b_weight = b_next_weight
            o_out = b_place.to(tl.int64)[:, None] * stride_out + o_d[None, :]
            m_out = (b_count > 0)[:, None] & (o_d < last_d)[None, :]
            tl.store(p_out + o_out, b_mean.to(p_out.dtype.element_ty), mask=m_out)
