"""Distances between tokens and their copies among others."""

from __future__ import annotations

import torch

import tpkernels


def test_rounding_makes_no_distance_negative() -> None:
    x = torch.randn(2, 60, 24, generator=torch.Generator().manual_seed(0))
    centered = x - x.mean(1, keepdim=True)
    norm = centered.square().sum(-1)
    # The equation as it stands gives some copies a distance below 0.
    plain = norm[:, :, None] + norm[:, None] - 2 * centered @ centered.mT
    assert bool((plain.diagonal(dim1=1, dim2=2) < 0).any())
    assert bool((tpkernels.pairwise_sqdist(x, x.clone()) >= 0).all())
