"""The reference's pruners, grid, bipartite merging and attention, by hand."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.support.by_hand import INF, canonical, close, line, noise, weights
from tpkernels import reference


def test_topk_by_hand():
    x = line(0, 0, 0, 0, 0)
    # 3 and 9, then the first of the two 2s; kept tokens in raster order.
    assert reference.topk(x, 3, weights(1, 2, 9, 2, 3)).tolist() == [-1, 0, 1, -1, 2]
    assert reference.topk(x, 2).tolist() == [0, 1, -1, -1, -1]


def test_uniform_is_splitmix64():
    # (1, -1) hashes 0x9E3779B97F4A7C15, the first state of SplitMix64 from seed 0; its published output is known.
    assert reference.uniform(1, -1) == ((0xE220A8397B1DCDAF >> 12) + 0.5) / 2**52
    values = [reference.uniform(seed, i) for seed in range(40) for i in range(50)]
    assert min(values) > 0 and max(values) < 1 and len(set(values)) == 2000
    # Mean 1/2 within four standard errors, sqrt(1 / 12 / 2000) = 0.0065.
    assert abs(sum(values) / 2000 - 0.5) < 0.026


def test_importance_draws_in_proportion_to_the_weights():
    x, w = torch.zeros(4, 1), weights(1, 2, 5, 0)
    drawn = Counter(reference.importance(x, 1, w, seed=seed).tolist().index(0) for seed in range(2000))
    # Standard errors below sqrt(0.25 / 2000) = 0.011.
    for token, expected in enumerate([1 / 8, 2 / 8, 5 / 8, 0]):
        assert abs(drawn[token] / 2000 - expected) < (0.045 if expected else 1e-9)
    assert all(reference.importance(x, 3, w, seed=seed).tolist() == [0, 1, 2, -1] for seed in range(20))
    # Weights of 0 only: the lowest tokens.
    assert reference.importance(x, 2, torch.zeros(4)).tolist() == [0, 1, -1, -1]


def test_random_reads_neither_tokens_nor_weights():
    labels = [reference.random(noise(seed, 9, 2), 4, noise(seed, 9).abs(), seed=7).tolist() for seed in range(3)]
    assert labels[0] == labels[1] == labels[2]
    assert [label for label in labels[0] if label >= 0] == [0, 1, 2, 3]
    assert len({tuple(reference.random(noise(0, 9, 2), 4, seed=seed).tolist()) for seed in range(20)}) > 10


def test_grid_by_hand():
    x = torch.zeros(16, 1)
    # Bands nearest to sqrt(4 * 4 / 4) = 2, two cells each: quadrants.
    assert reference.grid(x, 4).tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2
    # sqrt(5) = 2.24: two bands, of 5 // 2 = 2 and 3 cells; columns 0..3 times 3 // 4 = 0 0 1 2.
    assert reference.grid(x, 5).tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 4] * 2
    # 2 x 3, sqrt(2 * 2 / 3) = 1.15: one band of two cells; columns 0..2 times 2 // 3 = 0 0 1.
    assert reference.grid(x[:6], 2, grid_size=(2, 3)).tolist() == [0, 0, 1] * 2
    # No square: a strip, i * 4 // 6.
    assert reference.grid(x[:6], 4).tolist() == [0, 0, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="grid_size"):
        reference.grid(x, 4, grid_size=(3, 5))


def test_grid_fills_every_cell_in_order():
    for h, w in itertools.product(range(1, 8), repeat=2):
        for k in range(1, h * w + 1):
            labels = reference.grid(torch.zeros(h * w, 1), k, grid_size=(h, w)).tolist()
            assert canonical(labels) == labels and max(labels) == k - 1


def directions(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_bipartite_by_hand():
    # Sources 0, 88, 40 degrees, destinations 10 and 80. Best: 0 -> 10 (10 apart), 88 -> 80 (8), 40 -> 10 (30).
    x = directions(0, 10, 88, 80, 40)
    assert reference.bipartite(x, 4).tolist() == [0, 1, 2, 2, 3]
    assert reference.bipartite(x, 3).tolist() == [0, 0, 1, 1, 2]
    assert reference.bipartite(x, 2).tolist() == [0, 0, 1, 1, 0]
    # All three sources merge, then the two that are left.
    assert reference.bipartite(x, 1).tolist() == [0] * 5
    # The length does not count, the metric does.
    assert reference.bipartite(x * line(1, 9, 2, 7, 3), 4).tolist() == [0, 1, 2, 2, 3]
    assert reference.bipartite(noise(0, 5, 3), 4, metric=x).tolist() == [0, 1, 2, 2, 3]


def test_bipartite_ties_and_sizes():
    # Equal tokens: every source has destination 1; sources 0, 2 merge first.
    assert reference.bipartite(directions(0, 0, 0, 0, 0), 3).tolist() == [0, 0, 0, 1, 2]
    # Round one: 0 -> 10, 40 -> 50, 82 -> 88 degrees. Round two: one of the outer clusters joins the middle one, at 45.
    x = directions(0, 10, 40, 50, 82, 88)
    assert reference.bipartite(x, 3).tolist() == [0, 0, 1, 1, 2, 2]
    # Sizes 1, 9 put the first cluster near 9 degrees, 36 from the middle, nearer than the last one's 40.
    assert reference.bipartite(x, 2, weights(1, 9, 1, 1, 1, 1)).tolist() == [0, 0, 0, 0, 1, 1]
    # Sizes 9, 1 put it near 1 degree, 44 from the middle.
    assert reference.bipartite(x, 2, weights(9, 1, 1, 1, 1, 1)).tolist() == [0, 0, 1, 1, 1, 1]


def test_attention_by_hand():
    q, k, v = torch.zeros(1, 2, 1), torch.ones(1, 2, 1), torch.tensor([[[0.0], [8.0]]])
    # Equal logits: halves. Two queries give each key 1.
    out, significance = reference.attention(q, k, v)
    close(out, [[[4], [4]]])
    close(significance, [1, 1])
    # Sizes 1 and 3: shares 1/4 and 3/4, and the queries count 1 + 3.
    out, significance = reference.attention(q, k, v, torch.tensor([1.0, 3.0]))
    close(out, [[[6], [6]]])
    close(significance, [1, 3])
    # Key 0 is ignored, by size or by mask; a masked query says nothing.
    for options in ({"key_size": torch.tensor([0.0, 1.0])}, {"mask": torch.tensor([False, True])}):
        out, significance = reference.attention(q, k, v, **options)
        close(out, [[[0 if "mask" in options else 8], [8]]])
        close(significance, [0, 1])
    out, significance = reference.attention(q, k, v, mask=torch.zeros(2, dtype=torch.bool))
    assert out.abs().sum() == 0 and significance.abs().sum() == 0


def test_attention_is_softmax_attention():
    q, k, v = noise(0, 3, 2, 7, 4)
    mask = torch.tensor([True] * 5 + [False] * 2)
    size = noise(1, 7).abs() + 0.1
    out, significance = reference.attention(q, k, v, size, mask, scale=0.3)
    bias = size.log().masked_fill(~mask, -INF).expand(7, 7)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    close(out[:, mask], expected[:, mask])
    assert out[:, ~mask].abs().sum() == 0
    # Each valid query hands out its size once a head.
    close(significance.sum(), 2 * size[:5].sum())
    close(reference.attention(q, k, v)[0], torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert not reference.attention(q.requires_grad_(), k, v)[1].requires_grad


def test_a_token_of_size_two_attends_as_two_tokens():
    q, k, v = noise(2, 3, 2, 4, 3)
    rows = [0, 1, 1, 2, 3]
    out, significance = reference.attention(q, k, v, weights(1, 2, 1, 1))
    copies, counted = reference.attention(q[:, rows], k[:, rows], v[:, rows])
    close(out, copies[:, [0, 1, 3, 4]])
    close(significance, [counted[0], counted[1] + counted[2], counted[3], counted[4]])
