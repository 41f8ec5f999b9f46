"""Models and images for the pooling tax, and the model whose tokens are cut by slicing.

The model is the one of `examples/deit/model.py`: submodules, names and arithmetic are those of timm's
`deit_*_patch16_224` (a test loads one's weights into the other), and it needs no package.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import tpkernels

from ..environment import ROOT
from .cases import BASE, SLICING, Problem, Schedule

sys.path.insert(0, str(ROOT / "examples"))
from deit.methods import find_methods
from deit.model import DeiT, DeiTConfig
from deit.rows import twin

WIDTHS = {"deit-ti": (192, 3), "deit-s": (384, 6), "deit-b": (768, 12)}
NANO = DeiTConfig(img_size=32, patch_size=4, in_chans=3, embed_dim=48, num_heads=3)
TRAINED = ROOT / "examples" / "weights" / "deit_fashion.safetensors"
TRAINED_IMAGES = ROOT / "examples" / "data" / "fashion-mnist-test-2000"
# Each octave of an image has this share of the amplitude of the one before, and the blocks' weights are so many times
# DeiT's initial ones. Ward then takes 2 to 3 rounds at keep 0.9, 5 to 6 at 0.7 and 7 to 8 at 0.5, and loses 9 % of the
# variance at 0.5; on a trained ViT-S it takes 2 to 3, 5 to 7 and 7 to 10, and loses 3 to 12 %.
FALLING = 0.8
GAIN = 3.0


class Unavailable(Exception):
    """A model that is not available here; the message says why."""


@dataclass(frozen=True)
class Variant:
    """A model under test: `module` is called and runs `blocks`; `tokens` is how many reach each one's MLP."""

    name: str
    module: nn.Module
    blocks: nn.Sequential
    tokens: tuple[int, ...]


class Sliced(nn.Module):
    """A DeiT that cuts its tokens to given counts between attention and MLP: the least that yields those counts.

    No scores, no sizes, no proportional attention. Tokens are cut before the residual sum, which then has less to add
    and leaves tokens side by side in memory.
    """

    def __init__(self, model: DeiT, tokens: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.tokens = tokens

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        x = model.patch_embed(images)
        x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + model.pos_embed
        for block, left in zip(model.blocks, self.tokens, strict=True):
            if left == x.shape[1]:
                x = block(x)
            else:
                x = x[:, :left] + block.attn(block.norm1(x))[:, :left]
                x = x + block.mlp(block.norm2(x))
        return model.head(model.norm(x)[:, 0])


@functools.lru_cache(maxsize=1)
def model_of(name: str, device: torch.device, dtype: str) -> DeiT:
    """The model of this name, in eval mode.

    Raises:
        Unavailable: the trained one without safetensors to read it.
    """
    if name == "deit-fashion":
        if importlib.util.find_spec("safetensors") is None:
            raise Unavailable("safetensors is not installed")
        from deit.checkpoint import load_model

        model, _ = load_model(TRAINED)
    else:
        model = _random_model(NANO if name == "deit-nano" else _config(*WIDTHS[name]))
    return model.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


def _config(width: int, heads: int) -> DeiTConfig:
    return DeiTConfig(
        img_size=224, patch_size=16, in_chans=3, num_classes=1000, embed_dim=width, depth=12, num_heads=heads
    )


def _random_model(config: DeiTConfig) -> DeiT:
    """A model from a seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DeiT(config)
    with torch.no_grad():
        for module in model.blocks.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(GAIN)
    return model


def images_for(model: DeiT, name: str, batch: int) -> Tensor:
    """Images [B, C, S, S] in the model's dtype and on its device: shipped ones for the trained model, else fields."""
    config = model.cfg
    if name == "deit-fashion":
        from common.data import load_idx

        pixels, _ = load_idx(TRAINED_IMAGES, "test")
        # At even distances, for the set is in some order; a batch above its size repeats.
        chosen = torch.arange(batch) * max(1, len(pixels) // batch) % len(pixels)
        images = (pixels[chosen, None].float() / 255 - config.mean) / config.std
    else:
        images = fields(batch, config.in_chans, config.img_size)
    return images.to(model.pos_embed)


def fields(batch: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random images [B, C, S, S] of unit variance: noise of 2 x 2, 4 x 4, ... points, enlarged and summed.

    Patches that are near are alike, as in photographs: of independent pixels no patches would be alike.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(batch, channels, side, side)
    size, amplitude = 2, 1.0
    while size <= side:
        noise = torch.randn(batch, channels, size, size, generator=generator)
        images += amplitude * interpolate(noise, (side, side), mode="bilinear", align_corners=False)
        size, amplitude = 2 * size, FALLING * amplitude
    return images / images.std((1, 2, 3), keepdim=True)


def schedule_tokens(model: DeiT, schedule: Schedule) -> tuple[int, ...]:
    """Tokens, class token included, that reach each block's MLP."""
    left = tpkernels.resolve_keep(schedule.keep, len(model.blocks), model.cfg.grid_size**2, schedule.layers)
    return tuple(model.num_prefix_tokens + count for count in left)


def variants(model: DeiT, problem: Problem, methods: tuple[str, ...]) -> list[Variant]:
    """The base model, the sliced one, and one for each method; all share their weights."""
    tokens = schedule_tokens(model, problem.schedule)
    whole = (model.num_prefix_tokens + model.cfg.grid_size**2,) * len(model.blocks)
    found = [
        Variant(BASE, model, model.blocks, whole),
        Variant(SLICING, Sliced(model, tokens), model.blocks, tokens),
    ]
    for method in find_methods(list(methods)) if methods else ():
        settings: dict[str, Any] = {"method": method.method, "init": method.init, "weighted": method.weighted}
        pooled: Any = twin(model)
        tpkernels.patch(pooled, problem.schedule.keep, layers=problem.schedule.layers, **settings)
        found.append(Variant(method.name, pooled, pooled.blocks, tokens))
    return found
