"""Labelled images behind one interface: an IDX set, or a folder of class folders (ImageNet's layout)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .data import IDX_NAMES, DataError, find_idx, load_idx

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
# What Pillow's decoders raise on damaged bytes; UnidentifiedImageError and zlib's wrapper are OSErrors.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message is its path."""


class ImageSet(Protocol):
    """Images by number, their labels 0..C-1, and the names of the classes where the set has names."""

    labels: list[int]
    class_names: list[str] | None

    def image(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class IdxImages:
    """An IDX set, held in memory."""

    pixels: Tensor
    labels: list[int]
    class_names: list[str] | None = None

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index].numpy())


@dataclass(frozen=True)
class FolderImages:
    """Image files in one folder per class; classes are numbered by the folders' sorted names, as ImageNet's are."""

    root: Path
    paths: list[Path]
    labels: list[int]
    class_names: list[str] | None

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                # Decoding happens here, so that a truncated file is found here.
                return image.convert("RGB")
        except UNREADABLE:
            raise CorruptImageError(str(path.relative_to(self.root))) from None


def open_images(root: Path) -> IdxImages | FolderImages:
    """Opens the test images in `root`.

    Raises:
        DataError: `root` is no directory, or holds neither an IDX test set nor class folders with images.
    """
    if not root.is_dir():
        raise DataError(f"no directory at {root}; expected one with class folders or {' and '.join(IDX_NAMES['test'])}")
    if find_idx(root, "test"):
        pixels, labels = load_idx(root, "test")
        return IdxImages(pixels, labels.tolist())
    classes = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    paths, numbers = [], []
    for number, folder in enumerate(classes):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        paths += files
        numbers += [number] * len(files)
    if not paths:
        raise DataError(
            f"{root} holds no test images: expected one subfolder of image files per class, "
            f"or the IDX files {' and '.join(IDX_NAMES['test'])}"
        )
    return FolderImages(root, paths, numbers, [folder.name for folder in classes])


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """`limit` numbers of 0..total-1 at even distances: a folder sorted by class gives every class its share."""
    count = total if limit is None else min(limit, total)
    return [i * total // count for i in range(count)]


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] and labels [B] of a batch, and the files that could not be read. B may be 0."""

    images: Tensor
    labels: Tensor
    corrupt: list[str]


class Samples(Dataset):
    """Transformed images with labels; a corrupt image comes as its path."""

    def __init__(self, source: ImageSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        try:
            image = self.source.image(index)
        except CorruptImageError as error:
            return str(error)
        return self.transform(image), self.source.labels[index]


def collate(samples: list[tuple[Tensor, int] | str]) -> Batch:
    good = [sample for sample in samples if not isinstance(sample, str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    labels = torch.tensor([label for _, label in good], dtype=torch.long)
    return Batch(images, labels, [sample for sample in samples if isinstance(sample, str)])


def batches(
    source: ImageSet, transform: Callable[[Image.Image], Tensor], numbers: list[list[int]], workers: int
) -> Iterator[Batch]:
    """Yields the batches whose image numbers are given, read by `workers` processes (0: by this one)."""
    samples = Samples(source, transform)
    return iter(DataLoader(samples, batch_sampler=numbers, collate_fn=collate, num_workers=workers))


def all_read(loaded: Iterator[Batch], root: Path) -> Iterator[Batch]:
    """The batches as they come, where every image counts.

    Raises:
        DataError: an image of `root` cannot be read.
    """
    for batch in loaded:
        if batch.corrupt:
            raise DataError(f"{batch.corrupt[0]} in {root} cannot be read")
        yield batch
