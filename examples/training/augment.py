"""What training does to images on the way: shifts and flips, and mixup."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_and_flip(images: Tensor, generator: torch.Generator, pad: int = 2) -> Tensor:
    """Shifts each image [B, H, W] by up to `pad` pixels and flips half of them."""
    b, h, w = images.shape
    rows = torch.randint(0, 2 * pad + 1, (b, 1), generator=generator) + torch.arange(h)
    cols = torch.randint(0, 2 * pad + 1, (b, 1), generator=generator) + torch.arange(w)
    flip = torch.rand(b, 1, generator=generator) < 0.5
    cols = torch.where(flip, cols.flip(1), cols)
    padded = F.pad(images, (pad, pad, pad, pad))
    return padded[torch.arange(b)[:, None, None], rows[:, :, None], cols[:, None, :]]


def mixup(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Mixes every image of a batch with another one (Zhang et al., arXiv 1710.09412).

    Returns:
        `t x_i + (1 - t) x_j(i)` with one t from Beta(alpha, alpha), the indices j [B], and t. An alpha of 0 mixes
        nothing.
    """
    if alpha == 0:
        return images, torch.arange(len(images)), 1.0
    # A Beta from two Gammas: torch's own distributions take no generator.
    x, y = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    share = x / (x + y) if x + y > 0 else 1.0
    other = torch.randperm(len(images), generator=generator)
    return torch.lerp(images[other], images, share), other, share
