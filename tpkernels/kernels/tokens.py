"""Reading tokens and averaging them: the only parts of a clustering that touch the D channels."""

import triton
import triton.language as tl


@triton.jit
def load_tokens(p_x, o_n, o_d, m_n, d, stride_n, stride_d):
    """A block [T, BD] of tokens in float32, zero outside."""
    m = m_n[:, None] & (o_d < d)[None, :]
    return tl.load(p_x + o_n[:, None] * stride_n + o_d[None, :] * stride_d, mask=m, other=0.0).to(tl.float32)


@triton.jit
def gram_matrix(
    p_x, p_valid, p_mean, p_gram, count, n, d, stride_n, stride_d,
    NP: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the mean [D] of the valid tokens and the Gram matrix [NP, NP] of what is left of them without it.

    Subtracting the mean changes no distance and keeps a common offset from cancelling digits.
    """
    for c in range(0, d, BD):
        o_d = c + tl.arange(0, BD)
        b_sum = tl.zeros((BD,), tl.float32)
        for i in range(0, n, T):
            o_i = i + tl.arange(0, T)
            m_i = tl.load(p_valid + o_i) > 0
            b_sum += tl.sum(load_tokens(p_x, o_i, o_d, m_i, d, stride_n, stride_d), 0)
        tl.store(p_mean + o_d, b_sum / tl.maximum(count, 1).to(tl.float32), mask=o_d < d)
    tl.debug_barrier()
    for i in range(0, n, T):
        o_i = i + tl.arange(0, T)
        m_i = tl.load(p_valid + o_i) > 0
        # One triangle, mirrored: the matrix is symmetric to the last bit.
        for j in range(0, i + T, T):
            o_j = j + tl.arange(0, T)
            m_j = tl.load(p_valid + o_j) > 0
            b_gram = tl.zeros((T, T), tl.float32)
            for c in range(0, d, BD):
                o_d = c + tl.arange(0, BD)
                b_mean = tl.load(p_mean + o_d, mask=o_d < d, other=0.0)[None, :]
                b_i = load_tokens(p_x, o_i, o_d, m_i, d, stride_n, stride_d)
                b_j = load_tokens(p_x, o_j, o_d, m_j, d, stride_n, stride_d)
                b_i = tl.where(m_i[:, None], b_i - b_mean, 0.0)
                b_j = tl.where(m_j[:, None], b_j - b_mean, 0.0)
                b_gram = tl.dot(b_i, tl.trans(b_j), b_gram, input_precision=PRECISION)
            tl.store(p_gram + o_i[:, None] * NP + o_j[None, :], b_gram)
            if j != i:
                tl.store(p_gram + o_j[:, None] * NP + o_i[None, :], tl.trans(b_gram))
    tl.debug_barrier()


@triton.jit
def membership(
    p_label, p_weight, p_turn, o_s, o_j, n, stride_label, stride_weight, stride_turn,
    WEIGHTED: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Membership [S, T] of tokens o_j in clusters o_s, and the tokens' weights [T].

    With TURNS each cluster has its own row of labels, p_turn[o_s].
    """
    if TURNS:
        o_label = tl.load(p_turn + o_s)[:, None] * stride_turn + o_j[None, :] * stride_label
        b_label = tl.load(p_label + o_label, mask=(o_j < n)[None, :], other=-1)
        m_in = b_label == o_s[:, None]
    else:
        b_label = tl.load(p_label + o_j * stride_label, mask=o_j < n, other=-1)
        m_in = b_label[None, :] == o_s[:, None]
    if WEIGHTED:
        b_w = tl.load(p_weight + o_j * stride_weight, mask=o_j < n, other=0.0).to(tl.float32)
    else:
        b_w = tl.where(o_j < n, 1.0, 0.0)
    return m_in, b_w


@triton.jit
def store_means(
    p_x, p_label, p_weight, p_turn, p_out, o_s, o_row, m_s, first_d, last_d, n, d,
    stride_label, stride_turn, stride_weight, stride_n, stride_d,
    T: tl.constexpr, BD: tl.constexpr, WEIGHTED: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Writes channels first_d..last_d of the weighted means of the clusters o_s to rows o_row of p_out [K, D].

    Weights that sum to 0 count as equal ones; a cluster without members gives zeros.
    """
    b_mass = tl.zeros((T,), tl.float32)
    b_count = tl.zeros((T,), tl.float32)
    for j in range(0, n, T):
        o_j = j + tl.arange(0, T)
        m_in, b_w = membership(
            p_label, p_weight, p_turn, o_s, o_j, n, stride_label, stride_weight, stride_turn, WEIGHTED, TURNS
        )
        b_mass += tl.sum(tl.where(m_in, b_w[None, :], 0.0), 1)
        b_count += tl.sum(tl.where(m_in, 1.0, 0.0), 1)
    b_equal = tl.where(b_mass > 0, 0.0, 1.0)[:, None]
    b_total = tl.where(b_mass > 0, b_mass, tl.maximum(b_count, 1.0))[:, None]
    for c in range(first_d, last_d, BD):
        o_d = c + tl.arange(0, BD)
        b_mean = tl.zeros((T, BD), tl.float32)
        for j in range(0, n, T):
            o_j = j + tl.arange(0, T)
            m_in, b_w = membership(
                p_label, p_weight, p_turn, o_s, o_j, n, stride_label, stride_weight, stride_turn, WEIGHTED, TURNS
            )
            b_share = tl.where(m_in, (b_w[None, :] + b_equal) / b_total, 0.0)
            b_x = load_tokens(p_x, o_j, o_d, o_j < n, d, stride_n, stride_d)
            # A bad number belongs to its own cluster; times 0 it would be NaN in all of them.
            m_odd = (b_x != b_x) | (tl.abs(b_x) == float("inf"))
            b_mean = tl.dot(b_share, tl.where(m_odd, 0.0, b_x), b_mean, input_precision="ieee")
            if tl.max(m_odd.to(tl.int32)) > 0:
                b_odd = tl.dot(m_in.to(tl.float32), m_odd.to(tl.float32), input_precision="ieee")
                b_mean = tl.where(b_odd > 0, float("nan"), b_mean)
        o_out = o_row.to(tl.int64)[:, None] * d + o_d[None, :]
        tl.store(p_out + o_out, b_mean.to(p_out.dtype.element_ty), mask=m_s[:, None] & (o_d < d)[None, :])
