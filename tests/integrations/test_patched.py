"""What a patched model tells: its summary, and where its tokens went."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.deit import make_model
from tests.support.models import facts, make_transformers, mlp_tokens
from tpkernels import TokenPool, count_macs, patch, schedule_of, summary, trace, unpatch

KEEP = [64, 40, None, 11]


@pytest.fixture
def model() -> Any:
    return make_model().double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "block"},
        {"method": "kmedoids", "init": "topk", "max_iter": 3},
        {"method": "kmeans", "init": "farthest"},
        {"method": "bipartite"},
    ],
)
def test_summary_counts_what_count_macs_counts(model: Any, options: dict[str, Any]) -> None:
    plain = make_model()
    found = summary(patch(model, 0.7, layers=[1, 2], **options))
    assert found.schedule == tuple(schedule_of(model)) == (64, 45, 31, 31) and found.num_prefix_tokens == 1
    assert found.macs == count_macs(plain, found.schedule, **options)
    assert found.macs.total == found.macs.model + found.macs.clustering
    assert [row.clustering > 0 for row in found.macs.per_layer] == [False, True, True, False]
    in_mlp = [65, 65, 46, 32] if found.position == "block" else [65, 46, 32, 32]
    assert [row.mlp for row in found.macs.per_layer] == [8 * tokens * 24**2 for tokens in in_mlp]
    assert mlp_tokens(model, lambda: model(torch.randn(1, 1, 16, 16).double())) == in_mlp


def test_summary_prints_a_line_for_every_block(model: Any) -> None:
    found = summary(patch(model, 0.7, layers=[1, 2], method="kmedoids", init="topk", restore=True))
    first, titles, *rows, total = str(found).splitlines()
    assert first.startswith("DeiT: kmedoids from topk") and "1 prefix tokens" in first
    for words in ("weighted by significance", "proportional attention", "restored", "after attention"):
        assert words in first
    assert titles.split()[:4] == ["block", "tokens", "in", "out"]
    assert [row.split()[:3] for row in rows] == [
        ["0", "64", "64"], ["1", "64", "45"], ["2", "45", "31"], ["3", "31", "31"],
    ]  # fmt: skip
    assert total == (
        f"{found.macs.total / 1e9:.3f} GMAC with clustering ({found.macs.clustering / 1e9:.3f}), "
        f"{100 * found.macs.ratio:.1f} % of {found.macs.base / 1e9:.3f}"
    )


def test_summary_where_nothing_is_pooled(model: Any) -> None:
    found = summary(patch(model, 1.0))
    assert found.macs.clustering == 0 and found.macs.ratio == 1 and "nothing pooled" in str(found)


@pytest.mark.parametrize("ask", [summary, schedule_of, lambda model: trace(model).__enter__()])
def test_an_unpatched_model_tells_nothing(model: Any, ask: Any) -> None:
    for told in (model, unpatch(patch(model, 0.5)), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"patched with tpkernels.patch, got an unpatched {type(told).__name__}"):
            ask(told)


def by_hand(
    model: Any, images: Tensor, pools: list[TokenPool | None], position: str
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits of the pooled model with plain attention; where each of its pools put its tokens, and their sizes."""
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + model.pos_embed
    sizes, moves, all_sizes = torch.ones(x.shape[:2]), [], []
    for block, pool in zip(model.blocks.children(), pools, strict=True):
        x = x + block.attn(block.norm1(x))
        if position == "block":
            x = x + block.mlp(block.norm2(x))
        if pool is not None:
            x, sizes, info = pool(x, sizes=sizes, return_info=True)
            moves.append(info.assignment)
            all_sizes.append(sizes)
        if position == "attention":
            x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x)[:, 0]), moves, all_sizes


def follow(moves: list[Tensor]) -> list[list[list[int]]]:
    """Where every input token is after each move, one token at a time."""
    places = [list(range(moves[0].shape[1])) for _ in range(moves[0].shape[0])]
    steps = []
    for move in moves:
        places = [[-1 if place < 0 else int(move[sample, place]) for place in row] for sample, row in enumerate(places)]
        steps.append(places)
    return steps


@pytest.mark.parametrize("position", ["attention", "block"])
@pytest.mark.parametrize("method", ["ward", "kmeans", "bipartite", "random"])
def test_is_the_loop_written_out_and_traced(model: Any, images: Tensor, method: str, position: str) -> None:
    pools: list[TokenPool | None] = [
        None if keep in (None, 64) else TokenPool(keep, method, seed=layer) for layer, keep in enumerate(KEEP)
    ]
    patch(model, KEEP, method=method, proportional=False, position=position)
    if method == "bipartite":
        # By the tokens instead of the keys, which the loop above does not see.
        for pool in filter(None, model.blocks.plan.pools):
            pool.pool = lambda x, *args, pool=pool, **rest: TokenPool.pool(pool, x, *args, **{**rest, "metric": None})
    with torch.no_grad():
        expected, moves, sizes = by_hand(model, images, pools, position)
        with trace(model) as seen:
            logits = model(images)
    torch.testing.assert_close(logits, expected)
    assert seen.layers == [1, 3]
    assert [source.tolist() for source in seen.sources] == follow(moves)
    for size, known in zip(seen.sizes, sizes, strict=True):
        if method == "random":
            assert size is None
        else:
            assert torch.equal(size, known)


@pytest.mark.parametrize("restore", [True, False])
def test_sources_agree_with_sizes(model: Any, images: Tensor, restore: bool) -> None:
    patch(model, 0.6, restore=restore)
    with trace(model) as seen:
        model(images)
    assert seen.layers == [0, 1, 2, 3]
    for source, sizes, kept in zip(seen.sources, seen.sizes, schedule_of(model), strict=True):
        assert source.dtype == torch.int64 and source.shape == (3, 65) and sizes.shape == (3, 1 + kept)
        assert source[:, 0].eq(0).all() and source[:, 1:].min() >= 1
        for row, size in zip(source, sizes, strict=True):
            assert torch.equal(row.bincount(minlength=1 + kept).float(), size.float())


def test_dropped_tokens_are_nowhere(model: Any, images: Tensor) -> None:
    patch(model, [0.5, None, 0.5, None], method="topk")
    with trace(model) as seen:
        model(images)
    assert seen.layers == [0, 2] and seen.sizes == [None, None]
    for source, kept in zip(seen.sources, (32, 16), strict=True):
        for row in source:
            assert row[0] == 0 and row[row >= 0].tolist() == list(range(1 + kept))
    # What is gone stays gone.
    assert seen.sources[1][seen.sources[0] < 0].eq(-1).all()


def test_trace_leaves_nothing_behind(model: Any, images: Tensor) -> None:
    patch(model, 0.5, layers=[1])
    before = facts(model)
    with trace(model) as seen:
        assert seen.layers == [] and seen.sources == []
        model(images)
        assert len(seen.sources) == 1 and seen.sources[0].shape[0] == 3
        model(images[:2])
        assert seen.layers == [1] and seen.sources[0].shape[0] == 2
        with pytest.raises(ValueError, match="watched by another trace, got DeiT"), trace(model):
            pass
        model(images)
        assert seen.sources[0].shape[0] == 3
    model(images[:1])
    assert seen.sources[0].shape[0] == 3 and facts(model) == before and model.blocks.trace is None
    with pytest.raises(RuntimeError, match="must match"), trace(model) as seen:
        model(images[:, :, :3])
    assert seen.layers == [] and model.blocks.trace is None


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_recomputation_notes_nothing_twice(model: Any, images: Tensor, reentrant: bool, whole: bool) -> None:
    patch(model, [40, None, 11, 5]).train()
    with trace(model) as seen:
        model(images)
    expected = seen.sources
    with trace(model) as seen:
        x = (images if whole else torch.randn(3, 65, 24).double()).requires_grad_()
        run = model if whole else model.blocks
        out = checkpoint(run, x, use_reentrant=reentrant)
        noted = seen.sources
        out.sum().backward()
    assert seen.layers == [0, 2, 3] and len(noted) == len(seen.sources) == 3
    assert all(torch.equal(a, b) for a, b in zip(noted, seen.sources, strict=True))
    assert not whole or all(torch.equal(a, b) for a, b in zip(expected, seen.sources, strict=True))


@pytest.mark.parametrize("name", ["ViTModel", "DeiTForImageClassification", "SiglipVisionModel"])
def test_models_of_transformers_are_traced(transformers: Any, name: str) -> None:
    model, ask = make_transformers(transformers, name)
    prefix = {"ViTModel": 1, "DeiTForImageClassification": 2, "SiglipVisionModel": 0}[name]
    patch(model, 0.5, layers=[0, 2])
    with trace(model) as seen, torch.no_grad():
        ask(model)
    assert seen.layers == [0, 2]
    assert seen.sources[1][:, :prefix].tolist() == [list(range(prefix))] * 3
    for row, size in zip(seen.sources[1], seen.sizes[1], strict=True):
        assert torch.equal(row.bincount(minlength=prefix + 16).float(), size)
