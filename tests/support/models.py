"""Small vision transformers of each family, with attention far from uniform, and what to look at in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpkernels.integrations.towers import towers_in
from tpkernels.schedule.shapes import block_in

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 4,
    "intermediate_size": 96,
    "vocab_size": 50,
    # Siglip2 counts patches; videos have frames.
    "num_patches": 64,
    "num_frames": 4,
}
# By the start of a model's name.
VIDEOS = ("VideoMAE", "Vivit")


def spread_weights(model: nn.Module, std: float = 0.2) -> None:
    """Draws every matrix anew, so that attention and logits are far from uniform, unlike a fresh model's."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)


def make_timm(timm: Any, **changes: Any) -> nn.Module:
    """timm's VisionTransformer, 64 patches of 24 channels in 4 blocks."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
    model = timm.models.vision_transformer.VisionTransformer(**{**options, **changes}).eval()
    spread_weights(model)
    return model


def make_torchvision(torchvision: Any, **changes: Any) -> nn.Module:
    """torchvision's VisionTransformer, 64 patches of 24 channels in 4 blocks; skips without torchvision."""
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 4, 4, 3, 24, 96, num_classes=10, **changes).eval()
    spread_weights(model)
    return model


def make_config(cls: Any) -> Any:
    """The configuration of a small model of a class of transformers."""
    config = cls.config_class()
    for part in (config, *(getattr(config, part, None) for part in ("vision_config", "text_config"))):
        for field, value in SIZES.items():
            if hasattr(part, field):
                whole = getattr(part, field)
                setattr(part, field, type(whole)([value] * len(whole)) if isinstance(whole, (list, tuple)) else value)
        if hasattr(part, "tubelet_size") and not isinstance(part.tubelet_size, int):
            part.tubelet_size = [2, 4, 4]
    return config


def make_inputs(name: str, batch: int = 3) -> dict[str, Tensor | None]:
    """Images for a model of transformers, or what it takes in their place."""
    generator = torch.Generator().manual_seed(1)
    if name.startswith("Siglip2"):
        patches = torch.randn(batch, 64, 3 * 4 * 4, generator=generator)
        shapes = torch.tensor([[8, 8]] * batch)
        return {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": shapes}
    frames = (4,) if name.startswith(VIDEOS) else ()
    inputs: dict[str, Tensor | None] = {"pixel_values": torch.randn(batch, *frames, 3, 32, 32, generator=generator)}
    if name in ("CLIPModel", "CLIPSegModel"):
        inputs["input_ids"] = torch.tensor([[1, 2, 3]])
    return inputs


def make_transformers(transformers: Any, name: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A small model and how it is asked: `ask(model)`; skips where this release has no such model."""
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    model = cls(make_config(cls)).eval()
    spread_weights(model)
    inputs = make_inputs(name)

    def ask(model: nn.Module, **options: Any) -> Tensor:
        out = model(**inputs, **options)
        for field in ("logits", "logits_per_image", "image_embeds", "pooler_output"):
            if getattr(out, field, None) is not None:
                return out[field]
        return out.last_hidden_state

    return model, ask


def facts(model: nn.Module) -> tuple[Any, ...]:
    """What unpatching must bring back."""
    return (
        [(name, type(module), sorted(module.__dict__)) for name, module in model.named_modules()],
        list(model.state_dict()),
        [dict(module._forward_pre_hooks) for module in model.modules()],
        [dict(module._forward_pre_hooks_with_kwargs) for module in model.modules()],
    )


def watch_mlps(model: nn.Module, note: Callable[[nn.Module, Any], None]) -> list[Any]:
    """Calls `note` with each block's MLP and its inputs in every forward; the hooks, to be removed."""
    blocks = [block_in(child) for child in towers_in(model)[0].container.children()]
    # Older releases of transformers have no module for the whole MLP.
    mlps = [block.mlp if hasattr(block, "mlp") else block.intermediate for block in blocks]
    return [mlp.register_forward_pre_hook(note) for mlp in mlps]


def mlp_tokens(model: nn.Module, run: Callable[[], Any]) -> list[int]:
    """Tokens that each block's MLP gets, prefix included."""
    counts: list[int] = []
    hooks = watch_mlps(model, lambda _module, inputs: counts.append(inputs[0].shape[1]))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return counts
