"""PoWER-BERT's search for the tokens of each block (Goyal et al., arXiv 2001.08950), as Token Pooling uses it.

After a block's attention the patch tokens, sorted by their significance, are scaled by the block's weights r_l in
[0, 1]^N, one for each rank; the class token is not. Learned is `loss + penalty * sum_l l * sum_i r_l[i]`, l = 1 to L:
deeper blocks pay more for what they keep. Block l then keeps `ceil(sum_i r_l[i])` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpkernels
from tpkernels.integrations.towers import read_tower

# Halvings of the scale that meets a budget: enough to separate any two counts.
_HALVINGS = 60


def scale_by_rank(x: Tensor, significance: Tensor, weights: Tensor, prefix: int) -> Tensor:
    """Scales each patch token by the weight of its rank.

    Args:
        x: tokens [B, P + N, D], prefix first.
        significance: attention that each received [B, P + N].
        weights: [N] by rank, the highest significance first.
        prefix: P, tokens that stay as they are.
    """
    # Twice sorted: the places in the order are the ranks. Stable, so that the lowest index wins a tie.
    order = significance[:, prefix:].detach().argsort(dim=1, descending=True, stable=True)
    by_token = weights[order.argsort(dim=1)].unsqueeze(2)
    return torch.cat([x[:, :prefix], x[:, prefix:] * by_token.to(x.dtype)], dim=1)


def retention_penalty(retention: Tensor) -> Tensor:
    """`sum_l l * sum_i r_l[i]` of weights [L, N] >= 0, l = 1 to L: the paper's regulariser."""
    depth = torch.arange(1, len(retention) + 1, device=retention.device)
    return (depth * retention.sum(1)).sum()


@contextmanager
def softened(model: nn.Module, retention: Tensor) -> Iterator[None]:
    """Inside, the model's blocks scale their tokens by `retention` [L, N]; afterwards they are as they were.

    Raises:
        ValueError: a model whose blocks are not called as one nn.Sequential.
    """
    (_, _, family, container), shape, _ = read_tower(model)
    if type(container) is not nn.Sequential:
        raise ValueError(f"the soft search takes unpatched models of timm's structure, got {type(model).__name__}")
    blocks = list(container.children())

    def forward(x: Tensor) -> Tensor:
        for block, weights in zip(blocks, retention, strict=True):
            update, significance, _ = family.attention(block, x, None, True)
            x = scale_by_rank(x + update, significance, weights, shape.num_prefix_tokens)
            x = x + family.mlp(block, x)
        return x

    container.forward = forward
    try:
        yield
    finally:
        del container.forward


def learn_retention(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float,
    penalty: float,
    model_lr: float = 0.0,
) -> Tensor:
    """Learns the weights from 1 on by Adam, one step for each batch of images and labels.

    Args:
        penalty: of a rank kept at weight 1 in the first block; twice that in the second, and so on.
        model_lr: learning rate of the model's own weights; 0 leaves them as they are.

    Returns:
        [L, N] in [0, 1], on the CPU.
    """
    shape = read_tower(model).shape
    device = next(model.parameters()).device
    retention = torch.ones(shape.depth, shape.num_patches, device=device, requires_grad=True)
    groups = [{"params": [retention], "lr": lr}]
    if model_lr:
        groups.append({"params": [p for p in model.parameters() if p.requires_grad], "lr": model_lr})
    learned = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.Adam(groups)
    with softened(model, retention):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels) + penalty * retention_penalty(retention)
            # Not backward(), which would leave gradients in the frozen model.
            for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter.grad = gradient
            optimizer.step()
            with torch.no_grad():
                retention.clamp_(0, 1)
    return retention.detach().cpu()


def tokens_retained(retention: Tensor, layers: Collection[int] | None = None, scale: float = 1.0) -> list[int]:
    """`ceil(scale * sum_i r_l[i])` tokens for each block, none above the one before it, at least 1 and at most N.

    Args:
        layers: 0-based blocks that pool; the others keep what comes. None for every block.
    """
    left, tokens = retention.shape[1], []
    for layer, mass in enumerate(retention.double().sum(1).tolist()):
        if layers is None or layer in layers:
            left = min(left, max(1, math.ceil(scale * mass)))
        tokens.append(left)
    return tokens


def fit_budget(retention: Tensor, model: nn.Module, budget: float, layers: Collection[int] | None) -> list[int]:
    """The learned numbers of tokens, scaled by one factor for all blocks, so that they come up to the budget.

    Raises:
        ValueError: one token at every layer that pools is still above the budget.
    """

    def share(scale: float) -> float:
        return tpkernels.count_macs(model, tokens_retained(retention, layers, scale)).ratio

    # At the upper end every block that learned anything keeps all of its tokens.
    low, high = 0.0, retention.shape[1] / max(float(retention.sum(1).min()), 1e-6)
    if share(high) <= budget:
        return tokens_retained(retention, layers, high)
    if share(low) > budget:
        raise ValueError(f"--budget must be at least {share(low):.4f}, one token at every layer, got {budget}")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) <= budget else (low, middle)
    return tokens_retained(retention, layers, low)
