"""The Gram matrix of a sample's centered tokens.

Of half types the product of the high halves is enough where they hold every entry; where they don't, the two products
of high and low halves are added.
"""

import triton
import triton.language as tl


@triton.jit
def _product(b_i, b_j, b_gram, kind):
    """b_gram + b_i b_j^T; WIDEN: the interpreter's bfloat16 product is wrong, so it gets float32 factors."""
    if kind.WIDEN:
        return tl.dot(b_i.to(tl.float32), tl.trans(b_j.to(tl.float32)), b_gram, input_precision="ieee")
    elif kind.HALVES:
        return tl.dot(b_i, tl.trans(b_j), b_gram)
    else:
        return tl.dot(b_i, tl.trans(b_j), b_gram, input_precision=kind.PRECISION)


@triton.jit
def _products(p_i, p_j, begin_i, begin_j, b_gram, z, kind, BD: tl.constexpr):
    """b_gram and the products over all channels of what begins so many entries after p_i and p_j."""
    for c in range(0, z.ld_d, BD):
        b_gram = _product(tl.load(p_i + (begin_i + c)), tl.load(p_j + (begin_j + c)), b_gram, kind)
    return b_gram


@triton.jit
def gram_tile(s, i, j, inexact, rows, z, kind, tile):
    """Writes rows i.. and columns j.. (j <= i) of the Gram matrix and their mirror image.

    inexact: whether the low halves are needed; rows: of the buffer of a half, a multiple of T.
    """
    T: tl.constexpr = tile.T
    BD: tl.constexpr = tile.BD
    o_i = i + tl.arange(0, T)
    o_j = j + tl.arange(0, T)
    o_d = tl.arange(0, BD)
    p_i = s.centered + o_i[:, None] * z.ld_d + o_d[None, :]
    p_j = s.centered + o_j[:, None] * z.ld_d + o_d[None, :]
    low = rows * z.ld_d
    b_gram = tl.zeros((T, T), tl.float32)
    # Rows beyond N are old scratch: they reach no other row, and their entries are not stored.
    b_gram = _products(p_i, p_j, 0, 0, b_gram, z, kind, BD)
    # Nested, since the outer condition is a compile-time constant.
    if kind.HALVES:  # noqa: SIM102
        if inexact > 0:
            b_gram = _products(p_i, p_j, 0, low, b_gram, z, kind, BD)
            b_gram = _products(p_i, p_j, low, 0, b_gram, z, kind, BD)
    # Mirror the lower triangle, so that the matrix is symmetric to the last bit.
    b_mirror = tl.trans(b_gram)
    if i == j:
        b_gram = tl.where(o_i[:, None] >= o_j[None, :], b_gram, b_mirror)
        b_mirror = b_gram
    # Rows are padded to a multiple of 16, so that stores are vectors; the padding is masked where it is read.
    m_tile = (o_i < z.n)[:, None] & (o_j < z.ld)[None, :]
    tl.store(s.gram + o_i[:, None] * z.ld + o_j[None, :], b_gram, mask=m_tile)
    if i != j:
        m_tile = (o_j < z.n)[:, None] & (o_i < z.ld)[None, :]
        tl.store(s.gram + o_j[:, None] * z.ld + o_i[None, :], b_mirror, mask=m_tile)


@triton.jit
def gram_matrix(s, inexact, rows, z, kind, tile):
    """Writes the Gram matrix [N, ld], zero at invalid tokens."""
    for i in range(0, z.n, tile.T):
        for j in range(0, i + tile.T, tile.T):
            gram_tile(s, i, j, inexact, rows, z, kind, tile)
    tl.debug_barrier()
