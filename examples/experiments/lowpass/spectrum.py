"""Spectra of tokens: how much of their energy lies above each frequency of a graph.

A graph of weights W has the Laplacian `L = diag(W 1) - W`. Its eigenvalues are the graph's frequencies, its
eigenvectors U the waves: `tr(X^T L X) = 1/2 sum_ij W_ij ||x_i - x_j||^2`, so neighbours differ much in waves of high
frequency. Energy of tokens X [N, D] at a frequency is the squared length of its row of `U^T X` (Shuman et al.,
arXiv 1211.0053). Equal tokens are the wave of frequency 0, on every graph: their mean is left out of all shares.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Cuts lie where this share of the frequencies, 0 not counted, is below or at them. The middle one is the median.
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEDIAN = QUANTILES.index(0.5)


class Basis(NamedTuple):
    """frequencies [..., N] in ascending order, the first one 0, and waves [..., N, N], one a column."""

    frequencies: Tensor
    waves: Tensor


def laplacian(weights: Tensor) -> Tensor:
    """`diag(W 1) - W` of symmetric weights [..., N, N]; their diagonal falls out."""
    return torch.diag_embed(weights.sum(-1)) - weights


def grid_weights(rows: int, columns: int) -> Tensor:
    """Weights [N, N], N = rows x columns: 1 between patches that share a side."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y.flatten(), x.flatten()
    steps = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    return (steps == 1).double()


def attention_weights(attention: Tensor, prefix: int) -> Tensor:
    """Weights [B, P, P] between the P patch tokens: attention [B, H, N, N] both ways, averaged, mean over heads."""
    mean = attention[:, :, prefix:, prefix:].mean(1)
    return (mean + mean.mT) / 2


def basis(weights: Tensor) -> Basis:
    """The graph's frequencies and waves."""
    return Basis(*torch.linalg.eigh(laplacian(weights)))


def above(frequencies: Tensor) -> Tensor:
    """Which frequencies [..., N] lie above each cut, bool [..., Q, N].

    A cut is one of the frequencies, and equal ones stay together: which waves span them is arbitrary, so a share of
    energy that parted them would be, too.
    """
    count = frequencies.shape[-1] - 1
    places = torch.tensor([math.ceil(round(quantile * count, 6)) for quantile in QUANTILES])
    # Eigenvalues that are equal differ by rounding.
    slack = 1e-9 * frequencies[..., -1:, None]
    return frequencies[..., None, :] > frequencies[..., places][..., None] + slack


def energy(graph: Basis, x: Tensor) -> Tensor:
    """Energy at each frequency [B, N] of tokens x [B, N, D] less their mean."""
    centered = x.double() - x.double().mean(1, keepdim=True)
    return (graph.waves.mT @ centered).square().sum(-1)


def energy_above(graph: Basis, x: Tensor) -> Tensor:
    """Energy of tokens x [B, N, D]: [B, 1 + Q], all of it without the mean, then that above each cut."""
    found = energy(graph, x)
    high = above(graph.frequencies).double() @ found[..., None]
    return torch.cat([found.sum(-1, keepdim=True), high.squeeze(-1)], dim=-1)


def white_shares(graph: Basis) -> Tensor:
    """The share of energy above each cut [..., Q] of tokens that are noise, alike at all frequencies but 0."""
    return above(graph.frequencies).double().sum(-1) / (graph.frequencies.shape[-1] - 1)
