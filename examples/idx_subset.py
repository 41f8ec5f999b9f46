"""Writes the first images of an IDX test set as a smaller IDX set.

This made the images that the repository carries:

    python examples/idx_subset.py --data DIR --first 2000 --output examples/data/fashion-mnist-test-2000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.data import IDX_NAMES, DataError, load_idx, write_idx


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with the IDX files")
    parser.add_argument("--output", type=Path, required=True, help="directory for the smaller set")
    parser.add_argument("--first", type=int, default=2000, help="how many images")
    args = parser.parse_args(argv)
    images, labels = load_idx(args.data, "test")
    if not 1 <= args.first <= len(images):
        raise DataError(f"--first must be in 1..{len(images)}, got {args.first}")
    image_name, label_name = IDX_NAMES["test"]
    write_idx(args.output / f"{image_name}.gz", images[: args.first])
    write_idx(args.output / f"{label_name}.gz", labels[: args.first].byte())


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"idx_subset: {error}")
