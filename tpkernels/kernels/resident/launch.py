"""The entry kernels of Ward, K-Means and K-Medoids: one launch, a sample by one program, or four.

In one launch a program takes sample after sample (a persistent grid). It reads the tokens for their Gram matrix,
clusters on that matrix in scratch of its own, and reads the tokens again to pool them:

    x [B, N, D] -> tokens [B, K, D], assignment [B, N], source [B, N], medoids [B, K], loss [B], n_iter [B],
                   merge_heights [B, N - 1], total [B, K], n_clusters [B]

There is scratch for each program, not for each sample. Few large samples take four launches of the same parts, so that
several programs share a sample: blocks of centered tokens, tiles of the Gram matrix, the clustering, and channels of
the pooled tokens. Both ways compute the same numbers in the same order. Where not all samples have scratch at once, the
four launches are made for some at a time, from `first_sample` on.

Ward's whole dendrogram [B, N - 1, 4] is another entry, in one launch or four: the last two make and write it.

Of these parts a kernel is given what it reads, and zeros in other fields of a tuple: those would make variants of it.
"""

import triton
import triton.language as tl

from .arguments import Sizes
from .center import center_rows, channel_pivots
from .cluster import cluster_sample
from .gram import gram_matrix, gram_tile
from .pool import pool_sample
from .scratch import scratch_of
from .tree import merge_sample, write_tree


@triton.jit
def _sizes(n, k, shape, tile):
    """A sample's sizes; shape: its channels, the floats, ints and centered numbers of a program's scratch."""
    return Sizes(n, shape.d, k, (n + 15) // 16 * 16, tl.cdiv(shape.d, tile.BD) * tile.BD)


@triton.jit
def _scratch(p_room, program, shape, z, kind, tile):
    """The scratch of one program."""
    p_floats = p_room.floats + program * shape.floats
    p_ints = p_room.ints + program * shape.ints
    return scratch_of(p_floats, p_ints, p_room.centered + program * shape.centered, z, kind, tile)


@triton.jit
def _products(tensors, p_room, sample, n, k, shape, strides, kind, tile):
    """Makes a sample's Gram matrix; returns the sample as an int64, its sizes and the scratch of this program."""
    # That is the program's number, as a value that changes with the sample: nothing made of it can be hoisted.
    program = (sample % tl.num_programs(0)).to(tl.int64)
    # The sum with an int64 widens the index: offsets of samples pass 2^31.
    b = program * 0 + sample
    z = _sizes(n, k, shape, tile)
    s = _scratch(p_room, program, shape, z, kind, tile)
    rows = tl.cdiv(n, tile.T) * tile.T
    # The previous sample's reads of the scratch end before this one's writes begin.
    tl.debug_barrier()
    p_x = tensors.x + b * strides.b
    p_mask = tensors.mask + b * strides.mask_b
    channel_pivots(p_x, p_mask, s, z, strides, kind, tile)
    inexact = center_rows(p_x, p_mask, s, 0, n, z, strides, rows, kind, tile)
    gram_matrix(s, inexact, rows, z, kind, tile)
    return b, z, s


@triton.jit(do_not_specialize=["batch", "n", "k", "max_iter"])
def resident_kernel(tensors, out, p_room, shape, strides, batch, n, k, max_iter, bound, kind, tile):
    """All steps of whole samples."""
    # disable_licm: values hoisted out of the loop over samples would take more registers than there are.
    for sample in tl.range(tl.program_id(0), batch, tl.num_programs(0), disable_licm=True):
        b, z, s = _products(tensors, p_room, sample, n, k, shape, strides, kind, tile)
        cluster_sample(tensors, out, s, b, max_iter, bound, z, strides, kind, tile)
        p_x = tensors.x + b * strides.b
        pool_sample(p_x, out.tokens + b * k * shape.d, 0, shape.d, s, z, strides, kind, tile)


@triton.jit(do_not_specialize=["batch", "n"])
def linkage_kernel(tensors, p_tree, p_room, shape, strides, batch, n, kind, tile):
    """The dendrograms of whole samples."""
    for sample in tl.range(tl.program_id(0), batch, tl.num_programs(0), disable_licm=True):
        b, z, s = _products(tensors, p_room, sample, n, 1, shape, strides, kind, tile)
        merge_sample(tensors, s, b, z, strides, kind, tile)
        tl.debug_barrier()
        write_tree(tensors, p_tree, s, b, z, strides, kind, tile)


@triton.jit(do_not_specialize=["first_sample", "n", "k"])
def center_kernel(p_x, p_mask, p_room, shape, strides, first_sample, n, k, kind, tile):
    """First of four: a program centers T tokens of a sample.

    Benign race: every program of a sample stores the same pivots.
    """
    blocks = tl.cdiv(n, tile.T)
    at = tl.program_id(0).to(tl.int64) // blocks
    block = tl.program_id(0) % blocks
    z = _sizes(n, k, shape, tile)
    s = _scratch(p_room, at, shape, z, kind, tile)
    b = first_sample + at
    p_x += b * strides.b
    p_mask += b * strides.mask_b
    channel_pivots(p_x, p_mask, s, z, strides, kind, tile)
    first = block * tile.T
    inexact = center_rows(p_x, p_mask, s, first, tl.minimum(first + tile.T, n), z, strides, blocks * tile.T, kind, tile)
    tl.store(s.order + block, inexact)


@triton.jit(do_not_specialize=["n", "k"])
def gram_kernel(p_room, shape, n, k, kind, tile):
    """Second of four: a program makes a tile of a sample's Gram matrix."""
    tiles = tl.cdiv(n, tile.T)
    b = tl.program_id(0).to(tl.int64) // (tiles * tiles)
    place = tl.program_id(0) % (tiles * tiles)
    i, j = place // tiles * tile.T, place % tiles * tile.T
    if j <= i:
        z = _sizes(n, k, shape, tile)
        s = _scratch(p_room, b, shape, z, kind, tile)
        o_t = tl.arange(0, tile.NP)
        inexact = tl.sum(tl.load(s.order + o_t, mask=o_t < tiles, other=0), 0)
        gram_tile(s, i, j, inexact, tiles * tile.T, z, kind, tile)


@triton.jit(do_not_specialize=["first_sample", "n", "k", "max_iter"])
def cluster_kernel(tensors, out, p_room, shape, strides, first_sample, n, k, max_iter, bound, kind, tile):
    """Third of four: a program clusters a sample on its Gram matrix."""
    at = tl.program_id(0).to(tl.int64)
    z = _sizes(n, k, shape, tile)
    s = _scratch(p_room, at, shape, z, kind, tile)
    cluster_sample(tensors, out, s, first_sample + at, max_iter, bound, z, strides, kind, tile)


@triton.jit(do_not_specialize=["first_sample", "n"])
def merge_kernel(tensors, p_room, shape, strides, first_sample, n, kind, tile):
    """Third of four: a program makes all mergers of a sample from its Gram matrix."""
    at = tl.program_id(0).to(tl.int64)
    z = _sizes(n, 1, shape, tile)
    s = _scratch(p_room, at, shape, z, kind, tile)
    merge_sample(tensors, s, first_sample + at, z, strides, kind, tile)


@triton.jit(do_not_specialize=["first_sample", "n"])
def tree_kernel(tensors, p_tree, p_room, shape, strides, first_sample, n, kind, tile):
    """Fourth of four: a program writes a sample's dendrogram."""
    at = tl.program_id(0).to(tl.int64)
    z = _sizes(n, 1, shape, tile)
    s = _scratch(p_room, at, shape, z, kind, tile)
    write_tree(tensors, p_tree, s, first_sample + at, z, strides, kind, tile)


@triton.jit(do_not_specialize=["first_sample", "n", "k"])
def pool_kernel(p_x, p_tokens, p_room, shape, strides, first_sample, n, k, kind, tile):
    """Fourth of four: a program pools P channels of a sample."""
    parts = tl.cdiv(shape.d, tile.P)
    at = tl.program_id(0).to(tl.int64) // parts
    first = tl.program_id(0) % parts * tile.P
    z = _sizes(n, k, shape, tile)
    s = _scratch(p_room, at, shape, z, kind, tile)
    b = first_sample + at
    last = tl.minimum(first + tile.P, shape.d)
    pool_sample(p_x + b * strides.b, p_tokens + b * k * shape.d, first, last, s, z, strides, kind, tile)
