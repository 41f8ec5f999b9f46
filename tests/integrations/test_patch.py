"""`patch` on the examples' DeiT and, where timm is installed, on timm's models."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from deit.model import Block, DeiT
from torch import Tensor, nn

from tests.support.deit import CONFIG, make_model
from tpkernels import TokenPool, count_macs, patch, resolve_keep, schedule_of, unpatch
from tpkernels.integrations.block import run_block
from tpkernels.integrations.containers import PooledSequential
from tpkernels.integrations.timm import Timm

METHODS = ("ward", "kmeans", "kmedoids", "topk", "importance", "random", "grid", "bipartite")
PATCHES = 64


@pytest.fixture
def model() -> DeiT:
    return make_model()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def token_counts(model: Any, images: Tensor) -> list[int]:
    """Tokens that each block's MLP gets, prefix included."""
    counts: list[int] = []
    hooks = [
        block.norm2.register_forward_hook(lambda _module, inputs, _output: counts.append(inputs[0].shape[1]))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return counts


def facts(model: nn.Module) -> tuple[Any, ...]:
    """What unpatching must bring back."""
    return (
        [(name, type(module), sorted(module.__dict__)) for name, module in model.named_modules()],
        list(model.state_dict()),
        [name for name, _ in model.named_parameters()],
        dict(model._forward_pre_hooks),
        dict(model._forward_pre_hooks_with_kwargs),
    )


@pytest.mark.parametrize("method", METHODS)
def test_keep_1_changes_nothing(model: DeiT, images: Tensor, method: str) -> None:
    expected = model(images)
    assert torch.equal(patch(model, 1.0, method=method)(images), expected)
    assert schedule_of(model) == [PATCHES] * 4


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_as_scheduled(model: DeiT, images: Tensor, method: str) -> None:
    expected = model(images)
    patch(model, 0.7, layers=[1, 2], method=method)
    assert schedule_of(model) == resolve_keep(0.7, 4, PATCHES, [1, 2]) == [64, 45, 31, 31]
    assert token_counts(model, images) == [65, 46, 32, 32]
    logits = model(images)
    assert logits.isfinite().all() and not torch.allclose(logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "kmedoids", "init": "topk"},
        {"method": "kmeans", "init": "topk", "weighted": False},
        {"method": "kmeans", "init": "farthest", "max_iter": 2},
        {"method": "ward", "weighted": True, "output": "medoid"},
        {"method": "ward", "proportional": False},
        {"method": "kmedoids", "init": "strided", "output": "medoid", "proportional": False},
    ],
)
def test_options(model: DeiT, images: Tensor, options: dict[str, Any]) -> None:
    patch(model, [0.5, 20, None, 0.9], **options)
    assert schedule_of(model) == [32, 20, 20, 18]
    assert token_counts(model, images) == [33, 21, 21, 19]
    assert model(images).isfinite().all()


def test_weighted_by_default_is_the_papers_choice(model: DeiT) -> None:
    for options, expected in (
        ({}, False),
        ({"method": "kmedoids"}, False),
        ({"method": "kmedoids", "init": "topk"}, True),
        ({"method": "kmeans", "init": "topk"}, True),
        ({"method": "kmeans", "init": "topk", "weighted": False}, False),
        ({"weighted": True}, True),
    ):
        patch(model, 0.5, **options)
        assert {pool.weighted for pool in model.blocks.plan.pools} == {expected}


def naive_logits(model: DeiT, images: Tensor, pools: list[TokenPool | None], proportional: bool) -> Tensor:
    """The pooled model written out: softmax, sizes and all."""
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + model.pos_embed
    sizes = torch.ones(x.shape[:2])
    for block, pool in zip(model.blocks, pools, strict=True):
        b, n, d = x.shape
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT * (d // heads) ** -0.5
        if proportional:
            logits = logits + sizes.log()[:, None, None]
        probability = logits.softmax(-1)
        x = x + block.attn.proj((probability @ v).transpose(1, 2).reshape(b, n, d))
        if pool is not None:
            received = probability.sum(1)
            received = (received * sizes[..., None] if proportional else received).sum(1)
            metric = k.mean(1) if pool.method == "bipartite" else None
            x, sizes = pool(x, received, sizes=sizes, metric=metric)
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("method", ["ward", "kmedoids", "bipartite", "topk"])
def test_is_the_model_written_out(model: DeiT, images: Tensor, method: str, proportional: bool) -> None:
    # In double precision no tie is broken by rounding.
    model, images = model.double(), images.double()
    options: dict[str, Any] = {"method": method, "init": "topk"}
    pools = [None, TokenPool(40, weighted=method == "kmedoids", **options), None, TokenPool(11, **options)]
    expected = naive_logits(model, images, pools, proportional)
    patch(model, [64, 40, None, 11], weighted=method == "kmedoids", proportional=proportional, **options)
    for pool in model.blocks.plan.pools[2:]:
        if pool is not None:
            pool.weighted = False
    torch.testing.assert_close(model(images), expected)


def test_significance_is_computed_only_where_it_is_needed(
    model: DeiT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpkernels.integrations import attend as adapter

    calls = []
    plain = adapter.attention
    monkeypatch.setattr(adapter, "attention", lambda *args, **options: calls.append(1) or plain(*args, **options))
    patch(model, 0.7, layers=[1, 2])(images)
    assert not calls
    patch(model, 0.7, layers=[1, 2], method="kmedoids", init="topk")(images)
    assert len(calls) == 2


def test_a_sample_does_not_depend_on_its_neighbours(model: DeiT, images: Tensor) -> None:
    model, images = patch(model.double(), 0.5), images.double()
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


def test_empty_batch(model: DeiT, images: Tensor) -> None:
    assert patch(model, 0.5)(images[:0]).shape == (0, 10)
    assert patch(model, 0.5, method="topk")(images[:0]).shape == (0, 10)


def test_budget(model: DeiT, images: Tensor) -> None:
    patch(model, budget=0.8, layers=[1])
    schedule = schedule_of(model)
    assert 0.7 < count_macs(model, schedule).ratio <= 0.8
    assert token_counts(model, images) == [1 + n for n in schedule]


@pytest.mark.parametrize("method", METHODS)
def test_unpatch_brings_everything_back(model: DeiT, images: Tensor, method: str) -> None:
    before, expected = facts(model), model(images)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert patch(model, 0.6, method=method) is model
    assert list(model.state_dict()) == list(state) and not any("pool" in name for name, _ in model.named_modules())
    model(images)
    assert unpatch(model) is model
    assert facts(model) == before
    assert torch.equal(model(images), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert facts(unpatch(model)) == before


def test_twice_is_once_with_the_second_settings(model: DeiT, images: Tensor) -> None:
    before = facts(model)
    expected = patch(make_model(), 0.5, layers=[2], method="kmeans")(images)
    patch(patch(model, 0.7), 0.5, layers=[2], method="kmeans")
    assert schedule_of(model) == [64, 64, 32, 32]
    assert torch.equal(model(images), expected)
    assert facts(unpatch(model)) == before


def test_forwards_leave_nothing_behind(model: DeiT, images: Tensor) -> None:
    patch(model, 0.5)
    first = model(images)
    before = [(name, sorted(module.__dict__)) for name, module in model.named_modules()]
    model(images[:1])
    assert torch.equal(model(images), first)
    # Nor does a run of the blocks outside of the model's call.
    model.blocks(torch.randn(1, 65, 24))
    assert not model.blocks.calls
    assert [(name, sorted(module.__dict__)) for name, module in model.named_modules()] == before


def test_copies_and_pickles(model: DeiT, images: Tensor) -> None:
    plain = model(images)
    expected = patch(model, 0.5)(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), expected)
        assert schedule_of(twin) == schedule_of(model)
        assert torch.equal(unpatch(twin)(images), plain)
    assert torch.equal(model(images), expected)


def test_a_slice_of_the_blocks_keeps_its_schedule(model: DeiT, images: Tensor) -> None:
    patch(model, 0.5)
    model.blocks = model.blocks[:2]
    assert isinstance(model.blocks, PooledSequential) and isinstance(model.blocks[0], Block)
    assert token_counts(model, images) == [33, 17]
    assert type(unpatch(model).blocks) is nn.Sequential


@pytest.mark.parametrize("method", METHODS)
def test_trains(model: DeiT, images: Tensor, method: str) -> None:
    patch(model, 0.5, method=method).train()
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize("options", [{}, {"method": "kmedoids", "init": "topk"}, {"method": "bipartite"}])
def test_autocast(model: DeiT, images: Tensor, options: dict[str, Any]) -> None:
    patch(model, 0.5, **options).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    logits.float().sum().backward()


@pytest.mark.parametrize("options", [{}, {"method": "kmedoids", "init": "topk"}, {"method": "topk"}])
def test_half_precision_weights(model: DeiT, images: Tensor, options: dict[str, Any]) -> None:
    patch(model.to(torch.bfloat16), 0.5, **options)
    assert model(images.to(torch.bfloat16)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"method": "kmedoids", "init": "topk"}, {"method": "bipartite"}])
def test_compiles_in_one_graph(model: DeiT, images: Tensor, options: dict[str, Any]) -> None:
    patch(model, 0.6, layers=[1, 2], **options)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), expected, atol=1e-4, rtol=1e-4)


class Gated(nn.Module):
    """timm's attention with all its options: query and key norms, an output norm, a gate, dropout."""

    def __init__(self, dim: int, num_heads: int, drop: float) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj, self.gate = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // num_heads), nn.LayerNorm(dim // num_heads)
        self.norm = nn.LayerNorm(dim)
        self.attn_drop, self.proj_drop = nn.Dropout(drop), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.q_norm(q) @ self.k_norm(k).mT * self.scale
        out = (self.attn_drop(logits.softmax(-1)) @ v).transpose(1, 2).reshape(b, n, d)
        return self.proj_drop(self.proj(self.norm(out) * self.gate(x).sigmoid()))


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.01, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class FullBlock(Block):
    """A block with every optional part; `negate` stands in for a drop path that can be told from nothing."""

    def __init__(self, dim: int = 24, num_heads: int = 3, mlp_ratio: float = 4.0, drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.attn = Gated(dim, num_heads, drop)
        self.ls1, self.ls2 = Scale(dim), Scale(dim)
        self.drop_path1, self.drop_path2 = nn.Hardtanh(-0.1, 0.1), nn.Hardtanh(-0.2, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def with_blocks(model: DeiT, make: Any) -> DeiT:
    model.blocks = nn.Sequential(*(make() for _ in range(4)))
    return model.eval()


@pytest.mark.parametrize("scores", [False, True])
def test_every_part_of_a_block_is_used(scores: bool) -> None:
    block = FullBlock().double()
    x = torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"method": "kmedoids", "init": "topk"} if scores else {}
    identity = TokenPool(8, **options)
    ones = torch.ones(2, 9)
    y, sizes, _ = run_block(Timm(), block, x, ones, pool=identity, proportional=True, position="attention")
    torch.testing.assert_close(y, block(x))
    assert sizes.eq(1).all()


def test_dropout_leaves_the_scores_alone(model: DeiT, images: Tensor) -> None:
    with_blocks(model, lambda: FullBlock(drop=0.5))
    patch(model, 0.5, method="topk").train()
    model(images).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class ForgottenScale(Block):
    """Scales its updates by a parameter that no one knows the name of."""

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.strength = nn.Parameter(torch.tensor(1e-5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.strength * self.attn(self.norm1(x))
        return x + self.strength * self.mlp(self.norm2(x))


class Rotary(Block):
    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        return super().forward(x)


def relative(model: DeiT) -> DeiT:
    model.blocks[2].attn.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    return model


def listed(model: DeiT) -> DeiT:
    model.blocks = nn.ModuleList(model.blocks)
    return model


def headless(model: DeiT) -> DeiT:
    del model.blocks[1].mlp
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: with_blocks(model, lambda: PostNorm(24, 3, 4.0)), "PostNorm computes something else"),
        (lambda model: with_blocks(model, lambda: ForgottenScale(24, 3, 4.0)), "ForgottenScale computes something"),
        (lambda model: with_blocks(model, lambda: Rotary(24, 3, 4.0)), "Rotary takes positions from `rope`"),
        (relative, "Attention takes positions from `relative_position_bias_table`"),
        (listed, "its `blocks` is a ModuleList, not an nn.Sequential"),
        (headless, "Block has no mlp"),
        (lambda model: nn.Linear(3, 3), "Linear: it has neither `blocks` nor"),
        (lambda model: None, "NoneType"),
    ],
)
def test_unsupported_models_raise_before_anything_changes(model: DeiT, change: Any, reason: str) -> None:
    changed = change(model)
    before = facts(changed) if changed is not None else None
    with pytest.raises(TypeError, match=r"model must be one of: vision transformers with timm's structure") as caught:
        patch(changed, 0.5)
    assert reason in str(caught.value) and type(changed).__name__ in str(caught.value)
    assert changed is None or facts(changed) == before


def test_prefix_tokens_are_counted_where_the_model_does_not_say(images: Tensor) -> None:
    class Silent(DeiT):
        num_prefix_tokens = None

    torch.manual_seed(0)
    model = Silent(CONFIG)
    patch(model, 0.5, layers=[0])
    assert model.blocks.plan.num_prefix_tokens == 1 and token_counts(model, images) == [33] * 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "keep or budget must be given, and not both, got neither"),
        ({"keep": 0.5, "budget": 0.5}, ValueError, "got keep=0.5 and budget=0.5"),
        ({"keep": 0.0}, ValueError, "keep"),
        ({"keep": [0.5]}, ValueError, "keep"),
        ({"keep": 0.5, "layers": [4]}, ValueError, "layers"),
        ({"keep": 0.5, "method": "median"}, ValueError, "method"),
        ({"keep": 1.0, "init": "median"}, ValueError, "init"),
        ({"keep": 0.5, "output": "median"}, ValueError, "output"),
        ({"keep": 0.5, "backend": "numpy"}, ValueError, "backend"),
        ({"budget": 2.0}, ValueError, "budget"),
        ({"keep": 0.5, "position": "mlp"}, ValueError, "position must be one of attention, block"),
        ({"keep": 0.5, "method": "topk", "restore": True}, ValueError, "restore must be False or None"),
        ({"keep": 0.5, "min_tokens": -1}, ValueError, "min_tokens"),
        ({"keep": 0.5, "seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"keep": 0.5, "layers": torch.tensor(1)}, TypeError, "layers must be distinct 0-based blocks"),
        ({"keep": 0.5, "weighted": 1}, TypeError, "weighted must be a bool, got int"),
        ({"keep": 0.5, "proportional": 1}, TypeError, "proportional must be a bool, got int"),
        ({"keep": 0.5, "restore": "yes"}, TypeError, "restore must be a bool, got str"),
    ],
)
def test_bad_arguments_change_nothing(
    model: DeiT, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = facts(model)
    with pytest.raises(error, match=message):
        patch(model, **options)
    assert facts(model) == before


def test_schedule_of_an_unpatched_model(model: DeiT) -> None:
    with pytest.raises(ValueError, match="unpatched DeiT"):
        schedule_of(model)


def test_hooks_of_the_model_stay_silent_while_patching(model: DeiT) -> None:
    calls: list[int] = []
    model.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    patch(model, 0.5)
    assert not calls and not model.training
