"""Checkpoint files: weights as safetensors with the model's shape in the header, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from common.files import FileError, write_atomically
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .model import DeiT, DeiTConfig


class CheckpointError(FileError):
    """A checkpoint that cannot be used; the message names the file and says what was expected."""


def save_weights(path: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """Writes the weights in half precision, with `facts` (how they came about) in the header.

    A DeiT's configuration stands there too; timm's models are rebuilt by their name.
    """
    state = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in model.state_dict().items()}
    metadata = {"facts": json.dumps(facts)}
    if isinstance(model, DeiT):
        metadata["config"] = json.dumps(model.cfg.to_dict())
    write_atomically(path, lambda temporary: _save(state, temporary, metadata))


def _save(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(state, path, metadata=metadata)
    except SafetensorError as error:
        # What the writer makes of a full disk.
        raise OSError(f"weights could not be written to {path.parent} ({error})") from error


def read_weights(path: Path) -> tuple[DeiTConfig, dict[str, Tensor], dict[str, Any]]:
    """Returns the configuration, the weights (float32) and the recorded facts of a file that `save_weights` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or lacks its header.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; train one with examples/deit_train.py")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error})") from None
    try:
        config = DeiTConfig(**json.loads(metadata["config"]))
        facts = json.loads(metadata.get("facts", "{}"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no readable 'config' in its header ({error}); expected a file from examples/deit_train.py"
        ) from None
    return config, state, facts


def load_model(path: Path) -> tuple[DeiT, dict[str, Any]]:
    """Builds the model of a checkpoint and loads its weights; returns it in eval mode with the recorded facts."""
    config, state, facts = read_weights(path)
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if depth != config.depth:
        raise CheckpointError(f"{path} does not fit its own header: expected {config.depth} blocks, got {depth}")
    # A header may state any size: no memory is taken before that is compared with the weights'.
    with torch.device("meta"):
        model = DeiT(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit the shape in its own header: {said}") from None
    return model.eval(), facts
