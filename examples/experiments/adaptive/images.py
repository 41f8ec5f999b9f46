"""Images that need about alike, and a harder mix of them: padded, cropped and four in one beside those as they are."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from common.images import ImageSet, evenly_spaced
from PIL import Image, ImageOps

# The kinds that a set's images take turns at.
SETS = {"plain": ("whole",), "mixed": ("whole", "padded", "cropped", "four")}
KINDS = SETS["mixed"]
_CUBIC = Image.Resampling.BICUBIC


def split(total: int, evaluated: int, calibrated: int) -> tuple[list[int], list[int]]:
    """Numbers of the images to evaluate and of those to calibrate on, evenly spaced over two halves of the set."""
    half = evenly_spaced(total, max(1, total // 2))
    rest = sorted(set(range(total)).difference(half))
    return tuple(
        [some[i] for i in evenly_spaced(len(some), count)] for some, count in ((half, evaluated), (rest, calibrated))
    )


@dataclass(frozen=True)
class MixedImages:
    """Images of a source, `side` pixels wide and high, of the kinds of a set by turns.

    "whole": as it is; "padded": at half its size, anywhere on black; "cropped": half of its width and height, from
    about its middle, blown up; "four": four of the source's images at half the size each. What is drawn depends on the
    image's number alone, and all that is drawn from are `numbers`.
    """

    source: ImageSet
    numbers: list[int]
    side: int
    kinds: tuple[str, ...]
    class_names: list[str] | None = None

    @property
    def labels(self) -> list[int]:
        """Of "four" the label of the first."""
        return [self.source.labels[number] for number in self.numbers]

    def kind(self, index: int) -> str:
        return self.kinds[index % len(self.kinds)]

    def image(self, index: int) -> Image.Image:
        number, side, half = self.numbers[index], self.side, self.side // 2
        image, drawn = self.source.image(number).convert("L"), random.Random(number)
        match self.kind(index):
            case "padded":
                return _pasted([(image, (drawn.randint(0, side - half), drawn.randint(0, side - half)))], side)
            case "cropped":
                width, height = image.size
                # A window of half the side whose corner is an eighth to three eighths from the image's own.
                left, top = (extent * drawn.uniform(1 / 8, 3 / 8) for extent in (width, height))
                return image.resize((side, side), _CUBIC, (left, top, left + width / 2, top + height / 2))
            case "four":
                others = [self.source.image(other).convert("L") for other in drawn.choices(self.numbers, k=3)]
                places = [(0, 0), (half, 0), (0, half), (half, half)]
                return _pasted(zip((image, *others), places, strict=True), side)
        return ImageOps.fit(image, (side, side), _CUBIC)


def _pasted(images: Iterable[tuple[Image.Image, tuple[int, int]]], side: int) -> Image.Image:
    """Images at half a side on black."""
    canvas = Image.new("L", (side, side))
    for image, place in images:
        canvas.paste(ImageOps.fit(image, (side // 2, side // 2), _CUBIC), place)
    return canvas
