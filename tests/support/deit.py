"""The examples' DeiT with attention far from uniform."""

from __future__ import annotations

from typing import Any

import torch
from deit.model import DeiT, DeiTConfig

CONFIG = DeiTConfig(img_size=16, patch_size=2, embed_dim=24, depth=4, num_heads=3)


def make_model(seed: int = 0, **changes: Any) -> DeiT:
    """A DeiT whose attention and logits are far from uniform, unlike a fresh one's."""
    torch.manual_seed(seed)
    model = DeiT(DeiTConfig(**(CONFIG.to_dict() | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def make_large() -> DeiT:
    """A DeiT of weights large enough that answers differ between images and between schedules."""
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(patch_size=4, embed_dim=24, depth=4, num_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()
