"""All models that are judged, of the libraries that are installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from tools.torchvision_on_cpu import load_torchvision

from . import timm_models, torchvision_models, transformers_models
from .candidate import Candidate
from .table import Judged
from .verdict import judge

MODELS = {
    "timm": timm_models.candidates,
    "torchvision": torchvision_models.candidates,
    "transformers": transformers_models.candidates,
}


def libraries() -> dict[str, ModuleType]:
    """The libraries that are installed, by name."""
    found = {"torchvision": load_torchvision()}
    for name in ("timm", "transformers"):
        found[name] = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return {name: found[name] for name in MODELS if found[name] is not None}


def versions(packages: dict[str, ModuleType]) -> str:
    """The libraries and torch with their releases, without what says how torch was built."""
    named = {**packages, "torch": torch}
    return ", ".join(f"{name} {package.__version__.split('+')[0]}" for name, package in named.items())


def candidates(packages: dict[str, ModuleType]) -> list[Candidate]:
    """Every model of the libraries."""
    with quiet():
        return [one for name, package in packages.items() for one in MODELS[name](package)]


def others(packages: dict[str, ModuleType]) -> dict[str, int]:
    """timm's architectures without attention, by class."""
    return timm_models.convolutional(packages["timm"]) if "timm" in packages else {}


def judge_all(models: list[Candidate]) -> Iterator[Judged]:
    """The verdict on each model, in order."""
    with quiet():
        for one in models:
            yield Judged(one, judge(one))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings about small or unusual configurations."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
