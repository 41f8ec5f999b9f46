"""torchvision as PyPI has it, over a torch that is built for CPUs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch

# Operators are there as long as the library that defines them.
_held: list[torch.library.Library] = []


def load_torchvision() -> ModuleType | None:
    """The package torchvision, None where it is not installed. timm and transformers load it if it is there."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        # Over a torch for CPUs it lacks the operators that it describes; defining them lets it load.
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _held.append(library)
        return importlib.import_module("torchvision")
