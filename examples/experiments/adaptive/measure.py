"""What pooling does to every image: its answer beside the unpooled model's, and the tokens that it kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from deit.distances import tokens_seen
from deit.model import DeiT
from torch import Tensor

import tpkernels


@dataclass(frozen=True)
class Answers:
    """Of M images: logits [M, C], the class token that the head gets [M, D], patch tokens after each block [M, L]."""

    logits: Tensor
    feature: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Change:
    """Of M images: whether the class is the unpooled model's, KL(p_unpooled || p_pooled) in nats, and the distance of
    the class token's feature over the length of the unpooled one, [M] each."""

    agrees: Tensor
    divergence: Tensor
    feature: Tensor


@torch.inference_mode()
def answer(model: DeiT, batches: Iterable[Tensor], pooled: bool) -> Answers:
    """Runs a model, patched where `pooled`, on batches of images."""
    depth, patches = len(model.blocks), model.cfg.grid_size**2
    features: list[Tensor] = []
    logits, counts = [], []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        for images in batches:
            with tpkernels.trace(model) if pooled else nullcontext(tpkernels.Trace()) as trace:
                logits.append(model(images))
            counts.append(tokens_seen(trace, len(images), patches, depth, model.num_prefix_tokens))
    finally:
        handle.remove()
    return Answers(torch.cat(logits), torch.cat(features), torch.cat(counts))


def compare(unpooled: Answers, pooled: Answers) -> Change:
    """Image by image, in float64."""
    before, after = (one.logits.double().log_softmax(1) for one in (unpooled, pooled))
    feature = unpooled.feature.double()
    return Change(
        before.argmax(1) == after.argmax(1),
        # Rounding may leave it a little below zero.
        (before.exp() * (before - after)).sum(1).clamp(min=0),
        (pooled.feature.double() - feature).norm(dim=1) / feature.norm(dim=1),
    )


def worst(values: Tensor) -> float:
    """The 99th percentile."""
    return float(values.quantile(0.99))


def paired(values: Tensor, others: Tensor) -> tuple[float, float]:
    """The mean of `values - others`, image by image, and its standard error; 0 of a single image."""
    gaps = values.double() - others.double()
    return float(gaps.mean()), float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else 0.0


def bootstrapped(
    statistic: Callable[[Tensor], float], values: Tensor, others: Tensor, draws: int = 500
) -> tuple[float, float]:
    """`statistic(values) - statistic(others)`, and its standard error over images drawn with replacement, in pairs."""
    drawn = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    gaps = torch.tensor([statistic(values[some]) - statistic(others[some]) for some in drawn])
    return statistic(values) - statistic(others), float(gaps.std())
