"""Random numbers that are a function of (seed, index): the same on every device, in every batch, and never global."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which torch only shifts arithmetically."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(n: int, seed: int, device: torch.device) -> Tensor:
    """n float64 in (0, 1): SplitMix64 (Steele et al., 2014) of a counter, so the i-th depends on seed and i alone."""
    counter = torch.arange(1, n + 1, device=device)
    z = counter * _signed(0xBF58476D1CE4E5B9) + _signed(seed * 0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return (_shift_right(z, 12).double() + 0.5) / 2**52
