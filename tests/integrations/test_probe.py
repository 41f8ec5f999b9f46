"""The trial run by which `patch` sees what a block computes: whatever its weights, types and devices are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from deit.model import Attention, DeiT
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic

from tests.support.deit import make_model
from tests.support.models import facts, make_timm, make_torchvision, make_transformers, mlp_tokens
from tpkernels import patch, schedule_of, summary, unpatch


def make(request: pytest.FixtureRequest, library: str) -> nn.Module:
    package = request.getfixturevalue(library)
    if library == "transformers":
        return make_transformers(package, "ViTForImageClassification")[0]
    return make_timm(package) if library == "timm" else make_torchvision(package)


def linear_layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers in the blocks, with their holders and names; MultiheadAttention reads its own as tensors."""
    found = []
    for path, module in model.named_modules():
        if "layer" in path or "block" in path:
            for name, part in module.named_children():
                if isinstance(part, nn.Linear) and not isinstance(module, nn.MultiheadAttention):
                    found.append((module, name, part))
    assert found
    return found


class Adapted(nn.Module):
    """A linear layer with an adapter beside it, by PEFT's names."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def adapt_all(model: nn.Module) -> nn.Module:
    for holder, name, layer in linear_layers(model):
        setattr(holder, name, Adapted(layer))
    return model


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_any_layer_that_maps_channels_to_channels(request: pytest.FixtureRequest, library: str) -> None:
    images = torch.randn(2, 3, 32, 32)

    def ask(model: nn.Module) -> Tensor:
        out: Any = model(images)
        return out if isinstance(out, Tensor) else out.logits

    model = adapt_all(make(request, library))
    expected = ask(model)
    patch(model, 0.5)
    assert schedule_of(model) == [32, 16, 8, 4] and mlp_tokens(model, lambda: ask(model)) == [33, 17, 9, 5]
    # Adapters are not counted.
    assert summary(model).macs == summary(patch(make(request, library), 0.5)).macs
    assert torch.equal(ask(unpatch(model)), expected)
    later = adapt_all(patch(make(request, library), 0.5))
    assert mlp_tokens(later, lambda: ask(later)) == [33, 17, 9, 5]


@pytest.fixture
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_another_default_device(meta: None) -> None:
    with torch.device("cpu"):
        model = make_model()
        images = torch.randn(2, 1, 16, 16)
    patch(model, 0.5)
    with torch.device("cpu"):
        assert mlp_tokens(model, lambda: model(images)) == [33, 17, 9, 5]


def test_a_model_without_weights(meta: None) -> None:
    model = patch(make_model(), 0.5)
    assert schedule_of(model) == [32, 16, 8, 4]
    assert all(parameter.is_meta for parameter in model.parameters())


class HalfOnly(Attention):
    """Attention that takes one type, as FlashAttention does."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            raise RuntimeError("this attention only supports bfloat16")
        return super().forward(x)


def with_attention(kind: Any) -> DeiT:
    model = make_model()
    for block in model.blocks:
        block.attn.__class__ = kind
    return model


def test_attention_for_one_type_alone() -> None:
    with pytest.raises(TypeError, match=r"its Block does not run as a pre-norm block \(this attention only supports"):
        patch(with_attention(HalfOnly), 0.5)
    model = with_attention(HalfOnly).to(torch.bfloat16)
    images = torch.randn(2, 1, 16, 16, dtype=torch.bfloat16)
    expected = model(images)
    patch(model, 0.5)
    assert mlp_tokens(model, lambda: model(images)) == [33, 17, 9, 5]
    assert torch.equal(unpatch(model)(images), expected)


def test_attention_of_a_kernel_is_tried_by_scaled_dot_products(transformers: Any) -> None:
    model, ask = make_transformers(transformers, "ViTForImageClassification")
    expected = ask(model)
    before = model.config._attn_implementation
    for module in model.modules():
        if hasattr(module, "config"):
            # Not by its setter, which looks for the kernel.
            module.config._attn_implementation_internal = "flash_attention_2"
    patch(model, 0.5)
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {
        "flash_attention_2"
    }
    model.config._attn_implementation_internal = before
    assert mlp_tokens(model, lambda: ask(model)) == [33, 17, 9, 5]
    torch.testing.assert_close(ask(unpatch(model)), expected)


class Silent(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


class Rude(Attention):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such kernel")


class Strange(nn.Linear):
    """A layer whose weight is no plain tensor, and that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Silent, "its Block computes something else"),
        (Rude, r"its Block does not run as a pre-norm block \('no such ker"),
    ],
)
def test_every_failure_is_a_reason(kind: Any, reason: str) -> None:
    model = with_attention(kind)
    before = facts(model)
    with pytest.raises(TypeError, match=rf"^tpkernels\.patch: .*; got DeiT: {reason}"):
        patch(model, 0.5)
    assert facts(model) == before


def test_a_block_that_adds_nothing_tells_nothing() -> None:
    model = quantize_dynamic(make_model(), {nn.Linear})
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            weight = torch.quantize_per_tensor(torch.zeros(layer.weight().shape), 1.0, 0, torch.qint8)
            layer.set_weight_bias(weight, None)
    with pytest.raises(
        TypeError, match="its Block adds nothing to its tokens, so that what it computes cannot be seen"
    ):
        patch(model, 0.5)


def test_the_trial_leaves_no_trace() -> None:
    model, calls = make_model(), []
    block = model.blocks[0]
    block.register_forward_hook(lambda *_: calls.append(1))
    block.attn.proj.register_forward_pre_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    patch(model.train(), 0.5)
    assert not calls and model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
