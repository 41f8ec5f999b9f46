"""Every architecture of timm that attends, one for each set of options that differ in more than numbers."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .candidate import Candidate, images

SIDE = 32
TINY = {"img_size": SIDE, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
# Stems of convolutions need more pixels, and some have channels of their own.
STEM = {"img_size": 96, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7}
SHALLOW = {"img_size": 96, "depth": 4, "num_classes": 7}
ATTENDS = re.compile(r"softmax\(|scaled_dot_product_attention|\bAttention\b|vision_transformer import")
# Networks of convolutions, of which a few variants attend.
CONVOLUTIONAL = ("ByobNet", "GhostNet", "NormFreeNet", "ResNet")
# Options that are no part of a structure.
LEFT_OUT = ("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_filter_fn", "pretrained_strict", "feature_cfg")


class _Seen(Exception):
    """Raised in place of building a model, with its class and options."""


@contextmanager
def _unbuilt() -> Iterator[None]:
    """Has every entry point raise _Seen instead of building; stems, which come first, are built without memory."""

    def see(model_cls: Any, variant: str, pretrained: bool, **options: Any) -> Any:
        if not options.get("features_only"):
            raise _Seen(model_cls, options)
        with torch.device("meta"):
            return build(model_cls, variant, pretrained, **options)

    modules = [m for key, m in sys.modules.items() if key.startswith("timm.models.")]
    held = [(m, m.build_model_with_cfg) for m in modules if hasattr(m, "build_model_with_cfg")]
    build = held[0][1]
    for module, _ in held:
        module.build_model_with_cfg = see
    try:
        yield
    finally:
        for module, own in held:
            module.build_model_with_cfg = own


def form_of(options: dict[str, Any]) -> str:
    """A model's options with # for every number but 0."""
    text = repr({name: value for name, value in sorted(options.items()) if name not in LEFT_OUT})
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"(?<![\w.])(?!0\b(?!\.))\d+(\.\d+)?(e-?\d+)?", "#", text)


def _forms(timm: Any) -> dict[tuple[type, str], list[str]]:
    """The architectures of each class and form."""
    found: dict[tuple[type, str], list[str]] = {}
    with _unbuilt():
        for name in timm.list_models():
            try:
                timm.model_entrypoint(name)(pretrained=False)
            except _Seen as seen:
                found.setdefault((seen.args[0], form_of(seen.args[1])), []).append(name)
    return found


def _attends(kind: type) -> bool:
    source = inspect.getsource(sys.modules[kind.__module__])
    return kind.__name__ not in CONVOLUTIONAL and ATTENDS.search(source) is not None


def convolutional(timm: Any) -> dict[str, int]:
    """Architectures of the classes that do not attend, by class."""
    count: Counter[str] = Counter()
    for (kind, _), names in _forms(timm).items():
        if not _attends(kind):
            count[kind.__name__] += len(names)
    return dict(sorted(count.items()))


def candidates(timm: Any) -> list[Candidate]:
    """One for each class and form that attends."""
    forms = sorted(_forms(timm).items(), key=lambda form: (form[0][0].__name__, form[1]))
    return [
        Candidate("timm", kind.__name__, kind.__name__, tuple(names), _builder(timm, names[0]), _ask)
        for (kind, _), names in forms
        if _attends(kind)
    ]


def _builder(timm: Any, name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        for options in (TINY, STEM, SHALLOW):
            try:
                return timm.create_model(name, pretrained=False, **options)
            except Exception:
                # Classes differ in the options that they take; what is wrong with none of them is raised below.
                continue
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False)

    return build


def _ask(model: nn.Module, seed: int) -> Any:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (SIDE, SIDE)
    return model(images(model, seed, 2, 3, *size))
