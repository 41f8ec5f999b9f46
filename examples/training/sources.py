"""Where training and test images come from: IDX files, held in memory, or folders of image files, read by workers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from common.data import DataError, find_idx, load_idx
from common.distributed import World
from common.images import Batch, ImageSet, Samples, batches, collate, evenly_spaced, open_images
from deit.model import DeiTConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from .augment import shift_and_flip

TEST_BATCH = 250


class Source(Protocol):
    """Labelled images: `count` to train on; batches of an epoch and of the test set, each process its share."""

    count: int
    tested: int

    def epoch(self, number: int, world: World) -> Iterator[tuple[Tensor, Tensor]]: ...

    def steps(self, world: World) -> int: ...

    def test(self, world: World) -> Iterator[tuple[Tensor, Tensor]]: ...


def to_input(images: Tensor, cfg: DeiTConfig) -> Tensor:
    """uint8 [B, H, W] to normalised float [B, 1, H, W]."""
    return ((images.float() / 255 - cfg.mean) / cfg.std).unsqueeze(1)


def generator_of(seed: int, epoch: int, rank: int = 0) -> torch.Generator:
    """An epoch's own random numbers: a resumed run draws what the uninterrupted one would have drawn."""
    return torch.Generator().manual_seed((seed * 100_003 + epoch) * 1_009 + rank)


def steps_of(count: int, batch_size: int, world: World) -> int:
    """How many batches `shares` gives each process."""
    return math.ceil(math.ceil(count / world.size) / batch_size)


def shares(count: int, seed: int, epoch: int, batch_size: int, world: World) -> list[list[int]]:
    """Image numbers of this process's batches; every process has as many, so the first ones may come twice."""
    order = torch.randperm(count, generator=generator_of(seed, epoch)).tolist()
    order += order[: -count % world.size]
    mine = order[world.rank :: world.size]
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


class IdxSource:
    """An IDX set; training images are shifted and flipped."""

    def __init__(self, root: Path, cfg: DeiTConfig, batch_size: int, seed: int, limit: int | None, test: int | None):
        self.cfg, self.batch_size, self.seed = cfg, batch_size, seed
        images, labels = load_idx(root, "train")
        # Copies: a slice would keep what lies behind it.
        self.images, self.labels = images[:limit].clone(), labels[:limit].clone()
        images, labels = load_idx(root, "test")
        chosen = evenly_spaced(len(labels), test)
        self.test_images, self.test_labels = images[chosen], labels[chosen]
        self.count, self.tested = len(self.labels), len(chosen)

    def steps(self, world: World) -> int:
        return steps_of(self.count, self.batch_size, world)

    def epoch(self, number: int, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        generator = generator_of(self.seed, number, 1 + world.rank)
        for chosen in shares(self.count, self.seed, number, self.batch_size, world):
            images = shift_and_flip(self.images[chosen], generator)
            yield to_input(images, self.cfg), self.labels[chosen]

    def test(self, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = range(self.tested)
        for chosen in world.shard([list(numbers[i : i + TEST_BATCH]) for i in range(0, self.tested, TEST_BATCH)]):
            yield to_input(self.test_images[chosen], self.cfg), self.test_labels[chosen]


class FolderSource:
    """`train/` and `val/`, a folder for each class (ImageNet's layout); corrupt images are left out."""

    def __init__(
        self, root: Path, training: Callable[[Image.Image], Tensor], testing: Callable[[Image.Image], Tensor],
        batch_size: int, seed: int, limit: int | None, test: int | None, workers: int,
    ):  # fmt: skip
        self.train_set, self.test_set = (_folder(root / name) for name in ("train", "val"))
        if self.train_set.class_names != self.test_set.class_names:
            raise DataError(f"{root}: expected the same classes in train/ and val/, got different folders")
        self.training, self.testing = training, testing
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.numbers = evenly_spaced(len(self.train_set.labels), limit)
        self.tests = evenly_spaced(len(self.test_set.labels), test)
        self.count, self.tested = len(self.numbers), len(self.tests)

    def steps(self, world: World) -> int:
        return steps_of(self.count, self.batch_size, world)

    def epoch(self, number: int, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        generator = generator_of(self.seed, number, 1 + world.rank)
        # Transforms draw from these where no worker does; workers are seeded by the generator.
        random.seed(generator.initial_seed())
        torch.manual_seed(generator.initial_seed())
        chosen = [
            [self.numbers[i] for i in part] for part in shares(self.count, self.seed, number, self.batch_size, world)
        ]
        loader = DataLoader(
            Samples(self.train_set, self.training), batch_sampler=chosen, collate_fn=collate,
            num_workers=self.workers, generator=generator,
        )  # fmt: skip
        yield from (_pair(batch) for batch in loader if len(batch.labels))

    def test(self, world: World) -> Iterator[tuple[Tensor, Tensor]]:
        parts = [self.tests[i : i + TEST_BATCH] for i in range(0, self.tested, TEST_BATCH)]
        found = batches(self.test_set, self.testing, world.shard(parts), self.workers)
        yield from (_pair(batch) for batch in found if len(batch.labels))


def is_idx(root: Path) -> bool:
    """Whether there are IDX files in or below `root`."""
    return root.is_dir() and find_idx(root, "train") is not None


def _folder(root: Path) -> ImageSet:
    if not root.is_dir():
        raise DataError(f"no directory at {root}; expected train/ and val/ with class folders, or IDX files")
    return open_images(root)


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.images, batch.labels
