"""What was merged: each token drawn as the part of the image that it stands for, layer by layer.

python examples/visualize.py                                 # the picture of the README
python examples/visualize.py --images 3 7 --method bipartite --keep 0.5 --output merged.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from common.arguments import CHECKPOINT, DATA
from common.files import FileError
from common.images import open_images
from deit.checkpoint import CheckpointError
from deit.methods import METHODS, find_methods
from deit.model import DeiT
from deit.subjects import load_small
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

import tpkernels

EDGE = "#e8590c"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", nargs="+", type=int, default=[0, 2, 18], help="numbers of the images")
    parser.add_argument("--method", default="ward", help=", ".join(method.name for method in METHODS))
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--layers", nargs="+", type=int, default=[3, 6, 9], help="0-based blocks that pool")
    parser.add_argument("--output", type=Path, default=Path("runs/merged.png"))
    return parser.parse_args(argv)


def draw_tokens(axes: Axes, image: np.ndarray, label: np.ndarray) -> None:
    """Fills the patches of every token with their mean grey and draws the borders between tokens.

    Dropped patches stay blank. image [S, S] in 0..255, label [G, G] with -1 for patches that were dropped.
    """
    side = image.shape[0] // label.shape[0]
    wide = np.kron(label, np.ones((side, side), dtype=int))
    shown = np.full(image.shape, np.nan)
    for token in np.unique(label[label >= 0]):
        shown[wide == token] = image[wide == token].mean()
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(0, label.shape[1], label.shape[0], 0))
    rows, cols = np.nonzero(label[:, 1:] != label[:, :-1])
    upright = [((c + 1, r), (c + 1, r + 1)) for r, c in zip(rows, cols, strict=True)]
    rows, cols = np.nonzero(label[1:] != label[:-1])
    level = [((c, r + 1), (c + 1, r + 1)) for r, c in zip(rows, cols, strict=True)]
    axes.add_collection(LineCollection(upright + level, colors=EDGE, linewidths=0.7))


def draw(images: np.ndarray, maps: list[np.ndarray], layers: list[int], grid: int, output: Path) -> None:
    """One row per image: the image, then its tokens after each layer that pools."""
    rows, cols = len(images), 1 + len(maps)
    figure, all_axes = plt.subplots(rows, cols, figsize=(2.1 * cols, 2.1 * rows + 0.3), squeeze=False)
    for row, image in enumerate(images):
        all_axes[row, 0].imshow(image, cmap="gray", vmin=0, vmax=255)
        for col, label in enumerate(maps, start=1):
            draw_tokens(all_axes[row, col], image, label[row].reshape(grid, grid))
    for axes in all_axes.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    all_axes[0, 0].set_title(f"{grid * grid} patches", fontsize=11)
    for col, (label, layer) in enumerate(zip(maps, layers, strict=True), start=1):
        count = len(np.unique(label[0][label[0] >= 0]))
        all_axes[0, col].set_title(f"{count} tokens after block {layer}", fontsize=11)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    method = find_methods([args.method])[0]
    subject, source = load_small(args.checkpoint), open_images(args.data)
    if not all(0 <= index < len(source.labels) for index in args.images):
        raise ValueError(f"--images must lie in 0..{len(source.labels) - 1}, got {args.images}")
    model = subject.model
    if not isinstance(model, DeiT):
        raise CheckpointError(f"{args.checkpoint} holds no model of examples/deit")
    tpkernels.patch(model, args.keep, layers=args.layers, **method.arguments)
    pictures = [source.image(index) for index in args.images]
    with tpkernels.trace(model) as trace, torch.inference_mode():
        model(torch.stack([subject.transform(picture) for picture in pictures]))
    prefix = model.num_prefix_tokens
    maps = [source[:, prefix:].numpy() for source in trace.sources]
    shown = np.stack([np.asarray(picture.convert("L")) for picture in pictures])
    draw(shown, maps, trace.layers, model.cfg.grid_size, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (FileError, ValueError, TypeError) as error:
        sys.exit(f"visualize: {error}")
