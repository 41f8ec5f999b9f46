"""The model under evaluation with all that its images need: this project's small DeiT, or any ViT that timm builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.data import DataError
from common.images import ImageSet
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoint import CheckpointError, load_model
from .model import DeiTConfig


@dataclass(frozen=True)
class Subject:
    """A trained model, where its weights came from, and how an image becomes its input."""

    model: nn.Module
    name: str
    checkpoint: str
    transform: Callable[[Image.Image], Tensor]
    crop: str
    interpolation: str
    num_classes: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def provenance(self) -> str:
        """Whether the weights were trained on pooled tokens: `finetuned` in a checkpoint's facts."""
        finetuned = self.facts.get("finetuned")
        return f"fine-tuned ({finetuned})" if finetuned else "off the shelf (no training with pooling on record)"


@dataclass(frozen=True)
class SmallTransform:
    """What `deit_train.py` does to an image, for images of any size and mode."""

    cfg: DeiTConfig

    def __call__(self, image: Image.Image) -> Tensor:
        image = image.convert("L" if self.cfg.in_chans == 1 else "RGB")
        side = self.cfg.img_size
        if image.size != (side, side):
            image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).reshape(side, side, self.cfg.in_chans).permute(2, 0, 1)
        return (pixels.float() / 255 - self.cfg.mean) / self.cfg.std


def load_small(path: Path) -> Subject:
    """The small DeiT of a checkpoint that `deit_train.py` wrote."""
    model, facts = load_model(path)
    cfg = model.cfg
    return Subject(
        model,
        name=f"DeiT, width {cfg.embed_dim}, depth {cfg.depth}, {cfg.grid_size**2} patch tokens",
        checkpoint=str(path),
        transform=SmallTransform(cfg),
        crop=f"center square, {cfg.img_size} px",
        interpolation=f"bicubic, where an image is not {cfg.img_size} x {cfg.img_size}",
        num_classes=cfg.num_classes,
        facts=facts,
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors or torch file; a torch file may nest them under `model` or `state_dict`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; --checkpoint expects a safetensors or torch file")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes can raise any exception in torch's reader. Its message is left out: it advises to load the file
        # unsafely.
        raise CheckpointError(
            f"{path} cannot be read as a file of weights ({type(error).__name__}); "
            f"expected whole safetensors, or a torch file that holds tensors alone"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights: expected tensors by name, or under 'model' or 'state_dict'")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_timm(name: str, checkpoint: Path | None) -> Subject:
    """A timm model with the weights of `checkpoint`, or with timm's pretrained ones.

    Raises:
        CheckpointError: timm or the model in it is missing, or there are no weights that fit it.
    """
    try:
        import timm
        import timm.data
    # A torchvision of another build than torch raises a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise CheckpointError(f"--model {name} needs timm ({error}); pip install timm torchvision") from None
    state = read_state(checkpoint) if checkpoint else None
    classes = {} if state is None or "head.weight" not in state else {"num_classes": len(state["head.weight"])}
    try:
        model = timm.create_model(name, pretrained=state is None, **classes)
    # The hub client has its own exceptions for every way a download can fail; none is worth a dependency here.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"timm cannot give {name} ({reason}); --checkpoint FILE brings local weights") from None
    if state is not None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint} does not fit {name}: {' '.join(str(error).split())[:300]}") from None
    config = timm.data.resolve_model_data_config(model)
    return Subject(
        model.eval(),
        name=name,
        checkpoint=str(checkpoint) if checkpoint else f"timm {timm.__version__}, pretrained",
        transform=RgbTransform(timm.data.create_transform(**config, is_training=False)),
        crop=f"{config['crop_mode']} {config['crop_pct']:g}, {config['input_size'][-1]} px",
        interpolation=config["interpolation"],
        num_classes=model.num_classes,
    )


@dataclass(frozen=True)
class RgbTransform:
    """A timm transform that takes grey images too."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("RGB"))


def check_classes(subject: Subject, source: ImageSet) -> None:
    """Makes sure that a label means the same to the model and to the data.

    Raises:
        DataError: the numbers of classes differ.
    """
    found = len(source.class_names) if source.class_names else max(source.labels, default=0) + 1
    fits = found == subject.num_classes if source.class_names else found <= subject.num_classes
    if not fits:
        raise DataError(f"the data has {found} classes, the model {subject.num_classes}: --data must be of the model's")
