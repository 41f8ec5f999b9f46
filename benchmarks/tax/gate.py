"""The check before a model is timed: its token counts and its logits; one that fails gets no time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import tpkernels

from .cases import Schedule
from .models import DeiT, Variant, twin

# What logits may differ by between a model run eagerly and compiled, relative to their norm: a merger that rounding
# decides another way included, which moves them by far less than pooling does. bfloat16 itself is 0.012 from float32.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 5e-2}
# Images on which Ward's rounds are counted, and pooling nothing is checked to change nothing.
FEW = 4


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The first arguments of the modules' calls within, in the order in which they are called."""
    seen: list[Tensor] = []
    hooks = [module.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def first_call(variant: Variant, images: Tensor) -> tuple[Tensor, str | None]:
    """The model's logits, and what is wrong with it: the tokens at its MLPs, or logits that are not finite."""
    with inputs_of([block.mlp for block in variant.blocks]) as seen:
        logits = variant.module(images)
    tokens = tuple(x.shape[1] for x in seen)
    if tokens != variant.tokens:
        return logits, f"tokens at the MLPs: expected {list(variant.tokens)}, got {list(tokens)}"
    return logits, not_finite(logits)


def not_finite(logits: Tensor) -> str | None:
    """What is wrong with logits that hold NaN or infinities; None where they don't."""
    bad = int((~logits.isfinite()).sum())
    return f"logits: expected finite numbers, got {bad} of {logits.numel()} that are not" if bad else None


def differs(logits: Tensor, expected: Tensor) -> str | None:
    """What is wrong with logits that are further from those of the same model run eagerly than rounding explains."""
    bad = not_finite(logits)
    if bad is not None:
        return bad
    distance = float((logits.double() - expected.double()).norm() / expected.double().norm())
    most = TOLERANCES[expected.dtype]
    if distance <= most:
        return None
    return f"logits: expected those of the eager model within {most:g} of their norm, got {distance:.3g}"


def changes_nothing(model: DeiT, images: Tensor) -> str | None:
    """What is wrong where a model that pools to as many tokens does not have the base model's logits, bit for bit."""
    images = images[:FEW]
    pooled = tpkernels.patch(twin(model), 1.0)
    base, same = model(images), pooled(images)
    if torch.equal(base, same):
        return None
    return f"keep=1.0: expected the base model's logits, got {float((base - same).abs().max()):.3g} beside them"


def ward_rounds(model: DeiT, images: Tensor, schedule: Schedule) -> float:
    """Rounds that Ward takes on the base model's tokens at the layers that pool, each from all patch tokens; the mean.

    Ward's work grows with them: they show how hard the tokens are.
    """
    layers = range(len(model.blocks)) if schedule.layers is None else schedule.layers
    with inputs_of([model.blocks[layer].norm2 for layer in layers]) as seen:
        model(images[:FEW])
    patches = [x[:, model.num_prefix_tokens :] for x in seen]
    taken = [tpkernels.ward(x, tpkernels.tokens_kept(schedule.keep, x.shape[1])).n_iter for x in patches]
    return float(torch.stack(taken).double().mean())
