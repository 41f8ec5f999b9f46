"""The strided convolution that the paper compares with: a learned downsampling of the patch grid."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import tpkernels

from .model import Block, DeiT

KERNEL, STRIDE = 3, 2


class StridedBlock(nn.Module):
    """A block with a convolution of stride 2 over its patch grid between attention and MLP.

    The convolution starts as the mean of each 3 x 3 neighbourhood, so that an untrained one is average pooling.
    """

    def __init__(self, block: Block, dim: int, grid: int, prefix: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self.grid, self.prefix = grid, prefix
        self.reduce = nn.Conv2d(dim, dim, KERNEL, STRIDE, padding=KERNEL // 2)
        with torch.no_grad():
            self.reduce.weight.copy_(torch.eye(dim)[:, :, None, None].expand_as(self.reduce.weight) / KERNEL**2)
            self.reduce.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        image = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = torch.cat([prefix, self.reduce(image).flatten(2).transpose(1, 2)], 1)
        return x + self.mlp(self.norm2(x))


def reduce_by_convolution(model: DeiT, layer: int) -> None:
    """Puts the convolution into block `layer` (0-based) of a small DeiT, in place.

    Raises:
        ValueError: no such block, or one that has it already.
    """
    if not 0 <= layer < len(model.blocks):
        raise ValueError(f"--strided must lie in 0..{len(model.blocks) - 1}, got {layer}")
    block = model.blocks[layer]
    if not isinstance(block, Block):
        raise ValueError(f"--strided: block {layer} is a {type(block).__name__} already")
    model.blocks[layer] = StridedBlock(block, model.cfg.embed_dim, model.cfg.grid_size, model.num_prefix_tokens)


def strided_macs(model: DeiT, layer: int) -> tuple[tpkernels.Macs, list[int]]:
    """MACs of `model` (not yet changed) with the convolution in block `layer`, itself counted as its clustering.

    Returns:
        the MACs, and the patch tokens left after each block.
    """
    cfg = model.cfg
    side = (cfg.grid_size + STRIDE - 1) // STRIDE
    tokens = [cfg.grid_size**2 if block < layer else side**2 for block in range(cfg.depth)]
    macs = tpkernels.count_macs(model, tokens, method="topk")
    convolution = side**2 * KERNEL**2 * cfg.embed_dim**2
    rows = tuple(row if row.layer != layer else replace(row, clustering=convolution) for row in macs.per_layer)
    return tpkernels.Macs(macs.base, macs.model, convolution, rows), tokens
