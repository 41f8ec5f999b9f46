"""torchvision's vision transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from .candidate import Candidate, images


def candidates(torchvision: Any) -> list[Candidate]:
    """VisionTransformer, of which torchvision has several sizes, and the hierarchical ones."""
    models = torchvision.models
    plain = tuple(name for name in models.list_models(module=models) if name.startswith("vit_"))
    others = [name for name in models.list_models(module=models) if name in ("maxvit_t", "swin_t", "swin_v2_t")]

    def build() -> nn.Module:
        return models.VisionTransformer(32, 4, 4, 3, 24, 96, num_classes=10)

    def ask(model: nn.Module, seed: int) -> Any:
        return model(images(model, seed, 2, 3, 32, 32))

    return [
        Candidate("torchvision", "VisionTransformer", "VisionTransformer", plain, build, ask),
        *(
            Candidate("torchvision", name, name, (name,), lambda name=name: models.get_model(name), ask)
            for name in others
        ),
    ]
