"""MACs: the published figures, the formulas by hand, and shapes read from models."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tpkernels.schedule.keep import resolve_budget, resolve_keep
from tpkernels.schedule.macs import INITS, METHODS, ViTShape, clustering_macs, count_macs, vit_shape

DEIT_TI = ViTShape(depth=12, dim=192, num_patches=196)
DEIT_S = ViTShape(depth=12, dim=384, num_patches=196)

sizes = st.integers(1, 80)


@pytest.mark.parametrize(("shape", "giga"), [(DEIT_TI, "1.254"), (DEIT_S, "4.599")], ids=["DeiT-Ti", "DeiT-S"])
def test_the_published_base_models(shape, giga):
    macs = count_macs(shape)
    assert f"{macs.base / 1e9:.3f}" == giga
    assert macs.model == macs.total == macs.base
    assert macs.clustering == 0
    assert macs.ratio == 1.0


@given(st.integers(1, 24), st.integers(1, 512), st.integers(1, 600), st.integers(0, 5))
def test_base_is_the_closed_form(depth, dim, patches, prefix):
    """`L (12 N d^2 + 2 N^2 d)`, patch embedding and head."""
    n = patches + prefix
    blocks = depth * (12 * n * dim**2 + 2 * n**2 * dim)
    assert count_macs(ViTShape(depth, dim, patches, prefix)).base == blocks + patches * 768 * dim + dim * 1000


def test_pooling_sits_between_attention_and_mlp():
    shape = ViTShape(depth=2, dim=2, num_patches=4, num_prefix_tokens=1, mlp_ratio=1.5, patch_dim=3, num_classes=5)
    macs = count_macs(shape, [2, 2], method="grid")
    first, second = macs.per_layer
    # 5 tokens attend, 3 go through the MLP; then 3 and 3.
    assert (first.layer, first.tokens_in, first.tokens_out) == (0, 4, 2)
    assert (first.attention, first.mlp, first.clustering) == (4 * 5 * 4 + 2 * 25 * 2, 3 * 3 * 4, 4 * 2)
    assert (second.layer, second.tokens_in, second.tokens_out) == (1, 2, 2)
    assert (second.attention, second.mlp, second.clustering) == (4 * 3 * 4 + 2 * 9 * 2, 3 * 3 * 4, 0)
    assert macs.model == 4 * 3 * 2 + 2 * 5 + 180 + 36 + 84 + 36
    assert macs.clustering == 8
    assert macs.total == macs.model + 8
    assert macs.ratio == macs.total / macs.base


@given(st.lists(st.floats(0.05, 1.0), min_size=12, max_size=12), st.sampled_from(METHODS))
def test_rows_add_up_and_no_schedule_costs_more_without_its_clustering(keep, method):
    macs = count_macs(DEIT_TI, resolve_keep(keep, 12, 196), method=method)
    ends = 196 * 768 * 192 + 192 * 1000
    assert macs.model == ends + sum(row.attention + row.mlp for row in macs.per_layer)
    assert macs.clustering == sum(row.clustering for row in macs.per_layer)
    assert macs.model <= macs.base
    assert [row.layer for row in macs.per_layer] == list(range(12))
    assert all(row.clustering == 0 for row in macs.per_layer if row.tokens_in == row.tokens_out)


@pytest.mark.parametrize(
    ("model", "total"), [(1.22, 1.27), (1.53, 1.58), (2.07, 2.14), (2.53, 2.62), (2.94, 3.04), (4.29, 4.44)]
)
def test_the_papers_totals_with_clustering(model, total):
    """Marin et al., DeiT-S: WK-Medoids' GMAC beside top-K's at the same K per layer, read off a figure to 0.01.

    The paper's K per layer are not known; a constant ratio of the same MACs stands in for them.
    """
    macs = count_macs(DEIT_S, resolve_budget(DEIT_S, model / 4.599, method="topk"), method="kmedoids", init="topk")
    assert macs.model / 1e9 == pytest.approx(model, abs=0.02)
    assert macs.total / 1e9 == pytest.approx(total, abs=0.025)


N, K, D, T = 10, 6, 7, 5
GRAM, MEANS = N * N * D, N * D
# Of 10, 9, 8 and 7 clusters a merger touches 8, 7, 6 and 5 pairs.
WARD = 3 * (8 + 7 + 6 + 5) + MEANS


@pytest.mark.parametrize(
    ("method", "init", "macs"),
    [
        ("ward", "ward", GRAM + WARD),
        ("kmedoids", "topk", GRAM + T * MEANS + MEANS),
        ("kmedoids", "strided", GRAM + T * MEANS + MEANS),
        ("kmedoids", "farthest", GRAM + T * MEANS + MEANS),
        ("kmedoids", "ward", GRAM + T * MEANS + MEANS + WARD),
        ("kmedoids", "auto", GRAM + T * MEANS + MEANS + WARD),
        ("kmeans", "topk", (T + 1) * N * K * D + T * MEANS + MEANS),
        ("kmeans", "strided", (T + 1) * N * K * D + T * MEANS + MEANS),
        ("kmeans", [0, 1, 2, 3, 4, 5], (T + 1) * N * K * D + T * MEANS + MEANS),
        ("kmeans", "farthest", (T + 1) * N * K * D + T * MEANS + MEANS + K * MEANS),
        ("kmeans", "ward", (T + 1) * N * K * D + T * MEANS + MEANS + GRAM + WARD),
        ("topk", "ward", 0),
        ("importance", "ward", 0),
        ("random", "ward", 0),
        ("grid", "ward", MEANS),
        ("bipartite", "ward", 5 * 5 * D + MEANS),
    ],
)
def test_clustering_by_hand(method, init, macs):
    assert clustering_macs(N, K, D, method=method, init=init, max_iter=T) == macs


def test_bipartite_needs_a_second_round_below_half():
    # 9 tokens: 5 x 4 pairs, 5 mergers; of the 4 left, 2 x 2 pairs, 1 merger.
    assert clustering_macs(9, 3, 2, method="bipartite") == (5 * 4 + 9) * 2 + (2 * 2 + 4) * 2


def test_auto_start_changes_with_the_number_of_tokens():
    def auto(n, init):
        return clustering_macs(n, 8, 4, method="kmeans", init=init)

    assert auto(4096, "auto") == auto(4096, "ward") != auto(4096, "farthest")
    assert auto(4097, "auto") == auto(4097, "farthest") != auto(4097, "ward")


@given(sizes, sizes, sizes, st.sampled_from(METHODS), st.sampled_from(INITS), st.integers(0, 9))
def test_clustering_costs_nothing_where_nothing_is_pooled(n, k, dim, method, init, max_iter):
    k = min(n, k)
    macs = clustering_macs(n, k, dim, method=method, init=init, max_iter=max_iter)
    assert isinstance(macs, int)
    assert (macs == 0) == (k == n or method in ("topk", "importance", "random"))


@pytest.mark.parametrize("position", ["attention", "block"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("kind", ["torch", "int32", "numpy"])
def test_counts_of_many_images_are_those_of_each(method, init, position, kind):
    shape = ViTShape(depth=3, dim=8, num_patches=5000, patch_dim=12, num_classes=5)
    rows = [[5000, 4500, 70], [4097, 4096, 4096], [4000, 9, 1], [1, 1, 1]]
    options = {"method": method, "init": init, "position": position}
    counts = torch.tensor(rows) if kind != "int32" else torch.tensor(rows, dtype=torch.int32)
    found = count_macs(shape, counts.numpy() if kind == "numpy" else counts, **options)
    for image, row in enumerate(rows):
        one = count_macs(shape, row, **options)
        assert (found.base, int(found.total[image])) == (one.base, one.total)
        assert math.isclose(found.ratio[image], one.ratio, rel_tol=1e-6)
        for many, single in zip(found.per_layer, one.per_layer, strict=True):
            for name in ("tokens_in", "tokens_out", "attention", "mlp", "clustering"):
                assert len(getattr(many, name)) == 4 and int(getattr(many, name)[image]) == getattr(single, name)
    assert type(found.total) is (type(counts.numpy()) if kind == "numpy" else torch.Tensor)


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        (torch.ones(3, 12), TypeError, "schedule must hold integers, got float32"),
        (torch.ones(3, 12, dtype=torch.bool), TypeError, "schedule must hold integers, got bool"),
        (torch.ones(3, 11).long(), ValueError, r"schedule must have shape \[M, 12\], images and blocks, got \[3, 11\]"),
        (torch.ones(0, 12).long(), ValueError, r"schedule must have shape \[M, 12\], images and blocks, got \[0, 12\]"),
        (torch.full((3, 12), 197), ValueError, r"schedule\[:, 0\] must be at least 1 and .* got 197 to 197"),
        (torch.arange(1, 25).view(2, 12), ValueError, r"schedule\[:, 1\] must be .* left of each image, got 2 to 14"),
        (torch.arange(22, -2, -1).view(2, 12), ValueError, r"schedule\[:, 10\] must be at least 1 .* got 0 to 12"),
        (torch.ones(12).long(), TypeError, "schedule must list the patch tokens"),
    ],
)
def test_what_bad_counts_get(counts, error, message):
    with pytest.raises(error, match=message):
        count_macs(DEIT_TI, counts)


@given(sizes, st.data())
def test_lance_williams_counts_three_products_a_pair(n, data):
    k = data.draw(st.integers(1, n))
    touched = sum(live - 2 for live in range(k + 1, n + 1))
    assert clustering_macs(n, k, 1) == (3 * touched + n * n + n if k < n else 0)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "method must be one of ward, kmeans, .*; got 'k-means'", {"method": "k-means"}),
        (ValueError, "init must be one of auto, ward, .* got 'kmeans'", {"init": "kmeans"}),
        (ValueError, "max_iter must be an integer of at least 0, got -1", {"max_iter": -1}),
        (TypeError, "max_iter must be an integer of at least 0, got 2.5", {"max_iter": 2.5}),
        (ValueError, "schedule must hold 12 counts, one per block, got 3", {"schedule": [1, 1, 1]}),
        (ValueError, r"schedule\[0\] must be at most the 196 tokens .* got 197", {"schedule": [197] * 12}),
        (ValueError, r"schedule\[1\] must be at most the 50 tokens .* got 60", {"schedule": [50, 60] + [1] * 10}),
        (ValueError, r"schedule\[11\] must be an integer of at least 1, got 0", {"schedule": [9] * 11 + [0]}),
        (TypeError, r"schedule\[0\] must be an integer of at least 1, got 0\.7", {"schedule": [0.7] * 12}),
        (TypeError, r"schedule must list the patch tokens left after each of 12 blocks, got 0\.7", {"schedule": 0.7}),
    ],
)
def test_what_bad_arguments_get(error, message, arguments):
    with pytest.raises(error, match=message):
        count_macs(DEIT_TI, **arguments)


@pytest.mark.parametrize(("n", "k"), [(3, 4), (3, 0)])
def test_k_out_of_range(n, k):
    with pytest.raises(ValueError, match=rf"k must be .* got {k}"):
        clustering_macs(n, k, 8)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, "depth must be an integer of at least 1, got 0", {"depth": 0}),
        (ValueError, "num_prefix_tokens must be an integer of at least 0, got -1", {"num_prefix_tokens": -1}),
        (TypeError, "dim must be an integer of at least 1, got 192.0", {"dim": 192.0}),
        (TypeError, "num_patches must be an integer of at least 1, got True", {"num_patches": True}),
        (ValueError, "mlp_ratio must be a positive number, got nan", {"mlp_ratio": math.nan}),
        (ValueError, "mlp_ratio must be a positive number, got inf", {"mlp_ratio": math.inf}),
        (TypeError, "mlp_ratio must be a positive number, got '4'", {"mlp_ratio": "4"}),
    ],
)
def test_shapes_that_cannot_be(error, message, changes):
    with pytest.raises(error, match=message):
        replace(DEIT_TI, **changes)


def test_shapes_and_results_are_frozen():
    macs = count_macs(DEIT_TI)
    for value, name in ((DEIT_TI, "depth"), (macs, "model"), (macs.per_layer[0], "mlp")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 1)


class Block(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, dim))


class TimmNames(nn.Module):
    """A vision transformer as far as its names go: what timm calls the parts, and no forward."""

    def __init__(self, dim=24, depth=3, grid=(4, 5), hidden=96, tokens=("cls_token",), classes=10):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.grid_size = grid
        self.patch_embed.proj = nn.Conv2d(3, dim, 2, 2)
        for name in tokens:
            setattr(self, name, nn.Parameter(torch.zeros(1, 1, dim)))
        self.pos_embed = nn.Parameter(torch.zeros(1, len(tokens) + math.prod(grid), dim))
        self.blocks = nn.Sequential(*(Block(dim, hidden) for _ in range(depth)))
        self.head = nn.Linear(dim, classes)


def test_a_models_shape_is_read_from_its_names():
    shape = ViTShape(3, 24, 20, 1, mlp_ratio=4.0, patch_dim=12, num_classes=10)
    assert vit_shape(TimmNames()) == shape
    assert count_macs(TimmNames(), [10, 5, 5]) == count_macs(shape, [10, 5, 5])


def test_a_shape_stands_for_itself():
    assert vit_shape(DEIT_S) is DEIT_S


def test_prefix_tokens_are_found():
    model = TimmNames(tokens=("cls_token", "dist_token"))
    model.reg_token = nn.Parameter(torch.zeros(1, 4, 24))
    assert vit_shape(model).num_prefix_tokens == 6
    model.num_prefix_tokens = 2
    assert vit_shape(model).num_prefix_tokens == 2
    bare = TimmNames(tokens=())
    bare.cls_token = None
    assert vit_shape(bare).num_prefix_tokens == 0


def test_the_number_of_patches_is_found():
    model = TimmNames()
    model.patch_embed.num_patches = 7
    assert vit_shape(model).num_patches == 7
    model.patch_embed.num_patches = model.patch_embed.grid_size = None
    assert vit_shape(model).num_patches == 20
    model.no_embed_class = True
    assert vit_shape(model).num_patches == 21


def test_heads_are_counted():
    model = TimmNames()
    model.head_dist = nn.Linear(24, 10)
    assert vit_shape(model).num_classes == 20
    model.head, model.head_dist = nn.Identity(), None
    assert vit_shape(model).num_classes == 0


@given(st.integers(1, 40), st.integers(1, 200))
def test_odd_hidden_sizes_come_back_whole(dim, hidden):
    model = TimmNames(dim=dim, depth=1, hidden=hidden)
    tokens = 1 + 20
    assert count_macs(model).per_layer[0].mlp == tokens * 2 * dim * hidden


def uneven():
    model = TimmNames()
    model.blocks[1] = Block(24, 48)
    return model


def odd_head():
    model = TimmNames()
    model.head = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 10))
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(3, 3), "got Linear .*blocks|got Linear .*patch_embed"),
        (object(), "got object "),
        (None, "got NoneType "),
        ("deit_tiny", "got str "),
        (uneven(), "got TimmNames .*not one number"),
        (TimmNames(depth=0), "got TimmNames "),
        (odd_head(), "got TimmNames .*its head is a Sequential, not a linear layer"),
    ],
    ids=["linear", "object", "none", "name", "uneven", "blockless", "head"],
)
def test_a_model_that_cannot_be_read_is_named(model, reason):
    with pytest.raises(TypeError, match=rf"model_or_shape must be a ViTShape or a vision transformer .*{reason}"):
        count_macs(model)


@pytest.mark.parametrize("n", [1, 2, 11, 12, 50])
def test_bipartite_pays_for_every_round_until_k_are_left(n):
    for k in range(1, n + 1):
        macs, left = 0, n
        while left > k:
            sources = math.ceil(left / 2)
            macs += sources * (left // 2) * 7 + left * 7
            left = max(k, left - sources)
        assert clustering_macs(n, k, 7, method="bipartite") == macs, k
