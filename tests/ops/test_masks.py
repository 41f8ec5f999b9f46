"""Padding where functions take tokens and centers: a padded sample is the short one, whatever the padding holds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tpkernels
from tpkernels import assign, chamfer_loss, medoid_update, pairwise_sqdist

JUNK = [math.nan, math.inf, 1e6, 0.0]


def ragged(n: int, counts: list[int], junk: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens [B, N, 4] of which each sample's are scattered, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(counts), n, 4, generator=generator) + 3
    places = torch.rand(len(counts), n, generator=generator).argsort(1)
    mask = places < torch.tensor(counts)[:, None]
    return x.masked_fill(~mask[..., None], junk), mask


@pytest.mark.parametrize("junk", JUNK)
def test_pairwise_sqdist(junk: float) -> None:
    x, mask = ragged(9, [9, 5, 0], junk)
    y, y_mask = ragged(6, [4, 6, 3], junk, seed=1)
    itself, across = pairwise_sqdist(x, mask=mask), pairwise_sqdist(x, y, mask=mask, y_mask=y_mask)
    for b in range(3):
        rows, columns = mask[b], y_mask[b]
        torch.testing.assert_close(itself[b][rows][:, rows], pairwise_sqdist(x[b : b + 1, rows])[0])
        expected = pairwise_sqdist(x[b : b + 1, rows], y[b : b + 1, columns])[0]
        torch.testing.assert_close(across[b][rows][:, columns], expected)
        assert itself[b][~rows].eq(torch.inf).all() and itself[b][:, ~rows].eq(torch.inf).all()
        assert across[b][~rows].eq(torch.inf).all() and across[b][:, ~columns].eq(torch.inf).all()


@pytest.mark.parametrize("junk", JUNK)
def test_assign_and_chamfer_loss(junk: float) -> None:
    x, mask = ragged(9, [9, 5, 0], junk)
    centers, center_mask = ragged(6, [4, 6, 3], junk, seed=1)
    weight = torch.rand(3, 9)
    label = assign(x, centers, mask, center_mask=center_mask)
    loss = chamfer_loss(x, centers, weight, mask=mask, center_mask=center_mask)
    for b in range(3):
        rows, columns = mask[b], center_mask[b]
        short, chosen = x[b : b + 1, rows], centers[b : b + 1, columns]
        places = columns.nonzero().squeeze(1)
        assert torch.equal(label[b][rows], places[assign(short, chosen)[0]])
        assert label[b][~rows].eq(-1).all()
        torch.testing.assert_close(loss[b : b + 1], chamfer_loss(short, chosen, weight[b : b + 1, rows]))


def test_no_center_at_all() -> None:
    x, mask = ragged(5, [5, 3], 0.0)
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert assign(x, torch.zeros(2, 4, 4), mask, center_mask=none).eq(-1).all()
    assert chamfer_loss(x, torch.zeros(2, 4, 4), center_mask=none).eq(0).all()


@pytest.mark.parametrize("junk", JUNK)
def test_gradients_stay_finite(junk: float) -> None:
    x, mask = ragged(7, [7, 4, 0], junk)
    centers, center_mask = ragged(3, [3, 2, 3], junk, seed=1)
    x, centers = x.requires_grad_(), centers.requires_grad_()
    loss = chamfer_loss(x, centers, mask=mask, center_mask=center_mask)
    sqdist = pairwise_sqdist(x, centers, mask=mask, y_mask=center_mask)
    total = loss.sum() + sqdist.masked_fill(sqdist == torch.inf, 0).sum()
    for gradient, there in zip(torch.autograd.grad(total, (x, centers)), (mask, center_mask), strict=True):
        assert gradient.isfinite().all() and gradient[~there].eq(0).all() and gradient[there].ne(0).any()


@pytest.mark.parametrize("junk", JUNK)
def test_medoids_are_of_the_members_alone(junk: float) -> None:
    x, mask = ragged(12, [12, 7, 0], junk)
    label = torch.arange(12).expand(3, 12).remainder(3).masked_fill(~mask, -1)
    medoids = medoid_update(x, label, 3)
    for b in range(3):
        for k in range(3):
            members = (label[b] == k).nonzero().squeeze(1)
            if not len(members):
                assert medoids[b, k] == -1
                continue
            cost = pairwise_sqdist(x[b : b + 1, members])[0].sum(1)
            torch.testing.assert_close(cost[members == medoids[b, k]], cost.min()[None])


@pytest.mark.parametrize("method", ["kmeans", "kmedoids"])
def test_a_start_that_names_padding_of_samples_too_short_for_it(method: str) -> None:
    """A sample of no more tokens than clusters needs none, but shares the indices with those that do."""
    x, _ = ragged(40, [40, 40, 40], 0.0)
    mask = torch.arange(40) < torch.tensor([[40], [5], [20]])
    init = torch.tensor([18, 19, 10, 4, 3, 2, 1, 0])
    found = getattr(tpkernels, method)(x, 8, init=init, mask=mask)
    assert found.n_clusters.tolist() == [8, 5, 8]
    assert found.assignment[1].tolist() == [0, 1, 2, 3, 4] + 35 * [-1]
    for b in (0, 2):
        own = getattr(tpkernels, method)(x[b : b + 1], 8, init=init, mask=mask[b : b + 1])
        assert torch.equal(found.assignment[b], own.assignment[0])


def test_masks_that_do_not_fit() -> None:
    x, mask = ragged(5, [5, 3], 0.0)
    with pytest.raises(ValueError, match=r"y_mask must be None without y"):
        pairwise_sqdist(x, y_mask=mask)
    with pytest.raises(ValueError, match=r"y_mask must have shape \[2, 4\] to fit y \[2, 4, 4\], got \[2, 5\]"):
        pairwise_sqdist(x, x[:, :4], y_mask=mask)
    with pytest.raises(TypeError, match=r"center_mask must be a bool tensor"):
        assign(x, x[:, :4], center_mask=mask[:, :4].float())
