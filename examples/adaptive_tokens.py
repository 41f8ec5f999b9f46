"""Where tokens by distance pay: equal mean MACs for all images alike, and for each image by what it needs.

The small DeiT of this repository on its images as they are, and on a harder mix (a quarter each as it is, padded,
cropped, four in one), at two image sizes; calibrated on images that are not evaluated. About 20 minutes on two cores:

    python examples/adaptive_tokens.py
    python examples/adaptive_tokens.py --set mixed --size 28 --budget 0.65 --limit 100 --calibrate 40
    python examples/adaptive_tokens.py --join runs/28/rows.csv runs/56/rows.csv

Compared are a constant ratio and the searched tokens per block, both the same for all images, and the distances of
`tpkernels.solve_schedule(..., adaptive=True)`, at equal MACs: those that the distances take of the evaluated images in
the mean. What they change is told against the unpooled model's own answers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, by_name, one_line_of
from common.document import around_marks, write_document
from common.images import Batch, ImageSet, all_read, batches, open_images
from deit.checkpoint import load_model
from deit.model import DeiT, resize_patches
from deit.subjects import SmallTransform
from experiments.adaptive import picture, report, rows
from experiments.adaptive.images import SETS, MixedImages, split
from experiments.adaptive.measure import Answers, Change, answer
from experiments.adaptive.ways import CONSTANT, WAYS, Way, depth_errors, settings
from torch import Tensor
from tqdm import tqdm

import tpkernels
from tpkernels.schedule.shapes import vit_shape

PROGRAM = "examples/adaptive_tokens.py"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("adaptive_tokens", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="of deit_train.py")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of class folders, or of IDX files")
    parser.add_argument("--set", nargs="+", choices=list(SETS), default=list(SETS), help="kinds of images")
    parser.add_argument("--size", nargs="+", type=int, default=[28, 56], help="of the images, in pixels")
    parser.add_argument("--budget", nargs="+", type=float, default=[0.5, 0.58, 0.65, 0.75], help="shares of the MACs")
    parser.add_argument("--way", nargs="+", metavar="NAME", help=f"{', '.join(way.name for way in WAYS)}; default: all")
    parser.add_argument("--layers", nargs="+", type=int, help="0-based blocks that pool; default: 3 6 9 of 12")
    parser.add_argument("--limit", type=int, default=400, help="images of the model's own size; fewer larger ones")
    parser.add_argument("--calibrate", type=int, default=80, help="calibration images; fewer larger ones")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--join", nargs="+", type=Path, metavar="CSV", help="no measuring; show these rows")
    parser.add_argument("--output", type=Path, default=Path("runs/adaptive_tokens"), help="where CSV and PNG go")
    parser.add_argument("--csv", type=Path, help="the rows (default: rows.csv in --output)")
    parser.add_argument("--picture", type=Path, help="the figure (default: picture.png in --output)")
    parser.add_argument("--document", type=Path, help="put the tables between this document's marks")
    args = parser.parse_args(argv)
    for name in ("limit", "calibrate", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for budget in args.budget:
        if not 0 < budget < 1:
            parser.error(f"--budget must be above 0 and below 1, got {budget:g}")
    for size in args.size:
        if size < 2 or size % 2:
            parser.error(f"--size must be an even number of pixels, got {size}")
    args.csv, args.picture = args.csv or args.output / "rows.csv", args.picture or args.output / "picture.png"
    return args


def resized(model: DeiT, side: int) -> DeiT:
    """The model for images of another size: the same patches, more or fewer of them, positions interpolated.

    Raises:
        ValueError: the size is no multiple of the patches'.
    """
    if side == model.cfg.img_size:
        return model
    cfg = replace(model.cfg, img_size=side)
    other = DeiT(cfg)
    other.load_state_dict(resize_patches(model.state_dict(), model.cfg, cfg))
    return other.eval()


@dataclass(frozen=True)
class Images:
    """Of one set at one size: batches to evaluate, with kinds and labels [M], and batches to calibrate on."""

    evaluated: list[Tensor]
    kinds: list[str]
    labels: Tensor
    calibration: list[Tensor]


def load(args: argparse.Namespace, source: ImageSet, images_set: str, model: DeiT, own_side: int) -> Images:
    """The images of a set for a model.

    Args:
        own_side: the size that --limit and --calibrate are meant for; of larger images as many fewer as there are more
            tokens in each.

    Raises:
        DataError: an image cannot be read.
    """
    side = model.cfg.img_size
    share = min(1.0, (own_side / side) ** 2)
    counts = [max(1, round(count * share)) for count in (args.limit, args.calibrate)]
    mixed, rest = (
        MixedImages(source, numbers, side, SETS[images_set]) for numbers in split(len(source.labels), *counts)
    )

    def held(some: MixedImages) -> list[Batch]:
        places = list(range(len(some.numbers)))
        chunks = [places[i : i + args.batch_size] for i in range(0, len(places), args.batch_size)]
        return list(all_read(batches(some, SmallTransform(model.cfg), chunks, 0), args.data))

    evaluated = held(mixed)
    return Images(
        [batch.images for batch in evaluated],
        [mixed.kind(place) for place in range(len(mixed.numbers))],
        torch.cat([batch.labels for batch in evaluated]),
        [batch.images for batch in held(rest)],
    )


@dataclass(frozen=True)
class Comparison:
    """The ways on the images of one set and size; errors [L, N] are those of the calibration images."""

    model: DeiT
    images: Images
    layers: list[int]
    errors: Tensor
    setting: rows.Setting

    def rows(self, budget: float, ways: list[Way], bar: tqdm) -> list[rows.Row]:
        """The rows of a budget.

        On other images distances spend more or less than on those that they were calibrated on. What is compared with
        them, the constant ratio and the searched tokens, gets what they spent of the evaluated images.
        """
        found: dict[Way, rows.Row] = {}
        for everywhere in (False, True):
            some = sorted((way for way in ways if way.everywhere == everywhere), key=lambda way: way.kind != "distance")
            if everywhere and not some:
                break
            answers, spent = {}, budget
            for way in (*some, CONSTANT):
                answers[way] = self._pooled(way, spent)
                spent = self.setting.share(answers[way][0]) if way.kind == "distance" else spent
                bar.update()
            changes: dict[str, Change] = {}
            # Each after those that it is compared with.
            for way in (CONSTANT, *reversed(some)):
                row, changes[way.name] = self.setting.row(way, budget, *answers[way], changes)
                found.setdefault(way, row)
        return [found[way] for way in WAYS if way in found]

    def _pooled(self, way: Way, budget: float) -> tuple[Answers, float]:
        """What a way makes of the evaluated images, and the share that it takes of the calibration images."""
        patched, calibrated = settings(way, self.model, budget, self.layers, self.errors, self.images.calibration)
        tpkernels.patch(self.model, **patched)
        try:
            return answer(self.model, self.images.evaluated, pooled=True), calibrated
        finally:
            tpkernels.unpatch(self.model)


def measure(args: argparse.Namespace) -> Iterator[rows.Row]:
    """The rows one by one.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    source, (shipped, _) = open_images(args.data), load_model(args.checkpoint)
    if shipped.cfg.in_chans != 1:
        raise ValueError(f"--checkpoint must be of a model of grey images, got {shipped.cfg.in_chans} channels")
    # The constant ratio is what the others are compared with.
    ways = [way for way in by_name(WAYS, args.way, "--way") if way != CONSTANT]
    constants = 1 + any(way.everywhere for way in ways)
    models = [resized(shipped, side) for side in args.size]
    for model in models:
        layers = args.layers or sorted({len(model.blocks) * quarter // 4 for quarter in (1, 2, 3)})
        for budget in args.budget:
            tpkernels.resolve_budget(model, budget, layers)
    runs = [(model, images_set) for model in models for images_set in args.set]
    with tqdm(total=len(runs) * len(args.budget) * (constants + len(ways)), unit="run") as bar:
        for model, images_set in runs:
            bar.set_postfix_str(f"{images_set}, {model.cfg.img_size} px")
            images = load(args, source, images_set, model, shipped.cfg.img_size)
            setting = rows.Setting(
                images_set, model.cfg.img_size, sum(map(len, images.calibration)), images.kinds, images.labels,
                answer(model, images.evaluated, pooled=False), vit_shape(model),
            )  # fmt: skip
            errors = depth_errors(model, images.calibration)

            comparison = Comparison(model, images, layers, errors, setting)
            for budget in args.budget:
                yield from comparison.rows(budget, ways, bar)


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes; what was measured so far is written after every row."""
    if args.document is not None:
        # Raises before the work, not after it.
        around_marks(args.document, PROGRAM)
    args.output.mkdir(parents=True, exist_ok=True)
    found = [row for path in args.join or () for row in rows.read(path)]
    if not args.join:
        for row in measure(args):
            found.append(row)
            rows.write(args.csv, found)
    rows.write(args.csv, found)
    picture.draw(args.picture, found)
    table = report.table(found)
    if args.document is not None:
        write_document(args.document, PROGRAM, table)
    print(f"{table}\n\ntorch {torch.__version__}; rows in {args.csv}, figure in {args.picture}")


def main(argv: list[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_args(argv)
    with one_line_of("adaptive_tokens"):
        run(args)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
