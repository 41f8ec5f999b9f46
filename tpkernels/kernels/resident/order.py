"""The order of floats by their bits, and the sorting of a vector, by a bitonic network (Batcher, 1968).

`tl.sort` would do: it takes as many instructions, but as an expression of hundreds of operations, over which a pass of
Triton's compiler goes once for every load of the kernel: half a minute for K-Means.
"""

import triton
import triton.language as tl


@triton.jit
def ordered(b_bits):
    """Bits of a float as an integer that orders as it does, and back: of negative ones bits fall where numbers rise."""
    return b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)


@triton.jit
def ascending(b_key, WIDTH: tl.constexpr):
    """The keys [WIDTH], a power of two, in ascending order."""
    o = tl.arange(0, WIDTH)
    for size in range(1, steps_of(WIDTH) + 1):
        for step in range(size):
            distance = 1 << (size - 1 - step)
            b_other = tl.gather(b_key, o ^ distance, 0)
            # Runs of 2^size rise and fall by turns; the last one rises.
            m_least = ((o & distance) == 0) == ((o & (1 << size)) == 0)
            b_key = tl.where(m_least, tl.minimum(b_key, b_other), tl.maximum(b_key, b_other))
    return b_key


@triton.constexpr_function
def steps_of(width: int) -> int:
    """The binary logarithm of a power of two."""
    return width.bit_length() - 1
