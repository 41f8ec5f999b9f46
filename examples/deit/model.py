"""A DeiT (Touvron et al., arXiv 2012.12877) in plain PyTorch, small enough for a laptop.

Submodules and parameters carry timm's names, so `tpkernels.patch` treats it as it treats a timm model, and a
`state_dict` can be read with timm's tools.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class DeiTConfig:
    """Shape of the model, and the normalisation of its images. Stored beside the weights."""

    img_size: int = 28
    patch_size: int = 2
    in_chans: int = 1
    num_classes: int = 10
    embed_dim: int = 96
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    mean: float = 0.2860
    std: float = 0.3530

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not isinstance(self.mlp_ratio, (int, float)) or not 0 < self.mlp_ratio <= 64:
            raise ValueError(f"mlp_ratio must be a number above 0 and at most 64, got {self.mlp_ratio!r}")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size must be a multiple of patch_size {self.patch_size}, got {self.img_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads {self.num_heads}, got {self.embed_dim}")

    @property
    def grid_size(self) -> int:
        return self.img_size // self.patch_size

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


class PatchEmbed(nn.Module):
    def __init__(self, cfg: DeiTConfig) -> None:
        super().__init__()
        self.grid_size = (cfg.grid_size, cfg.grid_size)
        self.proj = nn.Conv2d(cfg.in_chans, cfg.embed_dim, cfg.patch_size, cfg.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DeiT(nn.Module):
    """Images [B, C, S, S] to logits [B, num_classes]; one class token, learned positions."""

    num_prefix_tokens = 1

    def __init__(self, cfg: DeiTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(cfg)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + cfg.grid_size**2, cfg.embed_dim))
        self.blocks = nn.Sequential(*(Block(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio) for _ in range(cfg.depth)))
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.head = nn.Linear(cfg.embed_dim, cfg.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """DeiT's initialisation: truncated normals of 0.02, zero biases."""
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Has every block recompute its activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def forward_features(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        if self.grad_checkpointing and torch.is_grad_enabled():
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images)[:, 0])


def resize_patches(state: dict[str, Tensor], old: DeiTConfig, new: DeiTConfig) -> dict[str, Tensor]:
    """The weights of `old` for the patch grid of `new`, as one fine-tunes a ViT at another resolution.

    Positions are interpolated bicubically (DeiT, section 4). The patch embedding is mapped by the pseudo-inverse of
    bilinear resizing, so that a resized patch keeps its embedding (FlexiViT, Beyer et al., arXiv 2212.08013, eq. 2).
    """
    state = dict(state)
    cls_pos, grid_pos = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    grid = grid_pos.reshape(1, old.grid_size, old.grid_size, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new.grid_size, new.grid_size), mode="bicubic", antialias=True)
    state["pos_embed"] = torch.cat([cls_pos, grid.flatten(2).transpose(1, 2)], dim=1)

    side_old, side_new = old.patch_size, new.patch_size
    unit = torch.eye(side_new**2).reshape(side_new**2, 1, side_new, side_new)
    resize = F.interpolate(unit, size=(side_old, side_old), mode="bilinear").reshape(side_new**2, side_old**2)
    weight = state["patch_embed.proj.weight"]
    flat = weight.reshape(*weight.shape[:2], side_old**2)
    # <resize(p), w_old> = <p, w_new>: the new kernel gives a small patch the embedding of its enlarged copy.
    state["patch_embed.proj.weight"] = (flat @ resize.T).reshape(*weight.shape[:2], side_new, side_new)
    return state
