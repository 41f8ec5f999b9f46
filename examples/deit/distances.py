"""Rows whose images keep different numbers of tokens: which methods can, what each image kept, what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import tpkernels
from tpkernels.schedule.file import fitting_schedule

from .methods import Method


def read_distances(model: nn.Module, path: Path | None) -> tpkernels.Schedule | None:
    """The schedule of a file that has distances; None where there is no file, or one number for all images.

    Raises:
        OSError, ValueError: the file cannot be read, is no schedule file, or is for a model of another shape.
    """
    if path is None:
        return None
    shape = tpkernels.count_macs(model).per_layer
    found = fitting_schedule(path, len(shape), shape[0].tokens_in)
    return None if found.distance is None else found


def merging(methods: Sequence[Method]) -> list[Method]:
    """Those of the methods that merge clusters by a distance."""
    return [method for method in methods if method.init == "ward" and method.method in ("ward", "kmeans", "kmedoids")]


def tokens_seen(trace: tpkernels.Trace, images: int, patches: int, depth: int, prefix: int) -> Tensor:
    """Patch tokens [B, depth] that each of B images had after every block, `patches` before the first; on the CPU."""
    after = {
        layer: ((sizes > 0).sum(1) - prefix).cpu()
        for layer, sizes in zip(trace.layers, trace.sizes, strict=True)
        if sizes is not None
    }
    left = torch.full((images,), patches)
    return torch.stack([left := after.get(layer, left) for layer in range(depth)], 1)


def mean_macs(most: tpkernels.Macs, model: int, clustering: int, images: int) -> tpkernels.Macs:
    """Macs in the mean of images from their sums, the layers as in `most`."""
    return replace(most, model=model / images, clustering=clustering / images)
