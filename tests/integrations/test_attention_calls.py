"""What is set on a block's attention, whose parts a patched block calls in place of itself: heard, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.support.models import make_inputs, make_timm, make_torchvision, make_transformers
from tpkernels import patch, unpatch
from tpkernels.integrations.towers import towers_in

LIBRARIES = ("timm", "torchvision", "ViTForImageClassification")


@pytest.fixture(params=LIBRARIES)
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    if request.param in ("timm", "torchvision"):
        package = request.getfixturevalue(request.param)
        return lambda: make_timm(package) if request.param == "timm" else make_torchvision(package)
    transformers = request.getfixturevalue("transformers")
    return lambda: make_transformers(transformers, request.param)[0]


def ask(model: nn.Module) -> Tensor:
    out = model(make_inputs("")["pixel_values"])
    return out if isinstance(out, Tensor) else out.logits


def attentions(model: nn.Module) -> list[nn.Module]:
    found = towers_in(model)[0]
    return [found.family.uncalled(block)[0] for block in found.container.children()]


def scaled(out: Any) -> Any:
    return (out[0] / 2, *out[1:]) if isinstance(out, tuple) else out / 2


@pytest.mark.parametrize("order", ["before", "after"])
def test_hooks_change_what_attention_takes_and_gives(make: Any, order: str) -> None:
    def hook(model: nn.Module) -> nn.Module:
        for attention in attentions(model):
            attention.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
            attention.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True)
            attention.register_forward_hook(lambda _module, _args, out: scaled(out))
            attention.register_forward_hook(lambda _module, _args, _kwargs, out: scaled(out), with_kwargs=True)
        return model

    plain, pooled = ask(hook(make())), ask(patch(make(), 0.5))
    if order == "before":
        model = hook(make())
        # With nothing pooled the blocks call their attention themselves.
        assert torch.equal(ask(patch(model, 1.0)), plain)
        patch(model, 0.5)
    else:
        model = hook(patch(make(), 0.5))
    assert not torch.allclose(ask(model), pooled, rtol=1e-3)
    # Changes that cancel out leave the pooled model as it is.
    for attention in attentions(model):
        attention._forward_pre_hooks.clear()
        attention.register_forward_hook(lambda _module, _args, out: scaled(scaled(out)))
        attention.register_forward_hook(
            lambda *arguments: (arguments[2][0] * 16, None) if isinstance(arguments[2], tuple) else arguments[2] * 16
        )
    torch.testing.assert_close(ask(model), pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["forward", "backward hook"])
def test_what_cannot_be_heard_is_refused(make: Any, order: str, kind: str) -> None:
    def change(model: nn.Module) -> None:
        attention = attentions(model)[1]
        if kind == "forward":
            old = attention.forward
            attention.forward = lambda *args, **kwargs: old(*args, **kwargs)
        else:
            attention.register_full_backward_hook(lambda *_: None)

    model = make()
    plain = ask(model)
    if order == "before":
        change(model)
        with pytest.raises(TypeError, match=r"has a (forward of its own|backward hook).*: patch the model first$"):
            patch(model, 0.5)
    else:
        change(patch(model, 0.5))
        with pytest.raises(RuntimeError, match=r"run the parts of their attention, which passes by what was set on it"):
            ask(model)
        unpatch(model)
    torch.testing.assert_close(ask(model), plain)


def test_another_attention_than_the_one_that_was_patched(make: Any) -> None:
    class Adapter(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    model = patch(make(), 0.5)
    block, old = next(iter(towers_in(model)[0].container.children())), attentions(model)[0]
    name = next(name for name, part in block.named_children() if part is old)
    setattr(block, name, Adapter(old))
    with pytest.raises(
        RuntimeError, match=rf"got .*\.Adapter in place of a {type(old).__name__}, or another forward of it: tpk"
    ):
        ask(model)
    setattr(block, name, old)
    expected = ask(model)

    # A subclass that computes something else, and one that does not.
    class Louder(type(old)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return scaled(super().forward(*args, **kwargs))

    old.__class__ = Louder
    with pytest.raises(RuntimeError, match=r"got .*Louder in place of a \w+, or another forward of it"):
        ask(model)
    old.__class__ = type("Same", Louder.__bases__, {})
    assert torch.equal(ask(model), expected)


def test_a_weight_that_a_hook_computes(torchvision: Any) -> None:
    model = make_torchvision(torchvision)
    for attention in attentions(model):
        prune.l1_unstructured(attention, "in_proj_weight", 0.3)
    patch(model, 0.5)
    first = ask(model)
    with torch.no_grad():
        for attention in attentions(model):
            attention.in_proj_weight_orig.mul_(0.5)
    changed = ask(model)
    assert not torch.allclose(changed, first, rtol=1e-3)
    unpatch(model)
    ask(model)
    assert torch.equal(ask(patch(model, 0.5)), changed)
    model.train()
    for _ in range(2):
        ask(model).sum().backward()


def test_an_attention_that_is_no_softmax(transformers: Any) -> None:
    if not hasattr(transformers, "AttentionInterface"):
        pytest.skip("this release takes no attention of others")
    for name in ("zeros", "sdpa_zeros"):
        transformers.AttentionInterface.register(
            name, lambda module, q, k, v, mask, **_: (torch.zeros_like(q).transpose(1, 2), None)
        )
    model, ask_model = make_transformers(transformers, "ViTForImageClassification")
    before = model.config._attn_implementation
    patch(model, 0.5)
    for name in ("sdpa_zeros", "zeros"):
        model.config._attn_implementation = name
        with pytest.raises(RuntimeError, match=rf"_attn_implementation: expected softmax attention .*, got '{name}'$"):
            ask_model(model)
    unpatch(model)
    with pytest.raises(TypeError, match="its attention is 'zeros', and what that computes is not known"):
        patch(model, 0.5)
    model.config._attn_implementation = before
    assert ask_model(patch(model, 0.5)).isfinite().all()
