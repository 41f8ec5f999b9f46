"""The defaults of `tpkernels.patch`, one against another: how far a pooled model's answers move from its own.

Without arguments: the small DeiT of this repository on its 2,000 Fashion-MNIST test images. The table of
docs/defaults.md and its CSV come from it:

    python examples/ablate_defaults.py --document docs/defaults.md --csv docs/defaults.csv
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common.arguments import CHECKPOINT, DATA
from common.document import write_document
from common.files import FileError, write_csv
from common.images import batches, evenly_spaced, open_images
from deit.rows import twin
from deit.subjects import load_small
from torch import Tensor, nn
from tqdm import tqdm

import tpkernels

# 0-based blocks, and the share of the tokens that each of them keeps.
SCHEDULES = {
    "0.7 at blocks 3, 6, 9": (0.7, (3, 6, 9)),
    "0.5 at blocks 3, 6, 9": (0.5, (3, 6, 9)),
    "0.9 at every block": (0.9, None),
}


@dataclass
class Variant:
    """One way to pool: a label, the options of `patch`, and what was counted over the images."""

    label: str
    options: dict[str, Any]
    schedule: str = ""
    model: nn.Module | None = None
    images: int = 0
    agree: int = 0
    correct: int = 0
    divergence: float = 0.0

    def add(self, logits: Tensor, own: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits of the pooled and of the unpooled model [B, C]."""
        self.images += len(labels)
        self.agree += int((logits.argmax(1) == own.argmax(1)).sum())
        self.correct += int((logits.argmax(1) == labels).sum())
        self.divergence += float(F.kl_div(logits.log_softmax(1), own.log_softmax(1), reduction="sum", log_target=True))

    def record(self) -> dict[str, object]:
        """The row of the CSV."""
        return {
            "schedule": self.schedule,
            "variant": self.label,
            "images": self.images,
            "disagree_percent": round(100 * (1 - self.agree / self.images), 2),
            "top1_percent": round(100 * self.correct / self.images, 2),
            "divergence_millinats": round(1000 * self.divergence / self.images, 3),
        }


@dataclass
class Axis:
    """One setting of `patch` and the values that are tried."""

    name: str
    values: dict[str, object] = field(default_factory=dict)


AXES = (
    Axis("output", {"mean": "mean", "one token": "medoid"}),
    Axis("weighted", {"by size": False, "by significance": True}),
    Axis("proportional", {"proportional": True, "plain": False}),
    Axis("position", {"after attention": "attention", "after the block": "block"}),
)


def variants() -> list[Variant]:
    """Ward with every combination of the settings, the default first, and the methods that it is compared with."""
    crossed = [
        Variant(
            "Ward: " + ", ".join(chosen),
            {axis.name: axis.values[name] for axis, name in zip(AXES, chosen, strict=True)},
        )
        for chosen in itertools.product(*(axis.values for axis in AXES))
    ]
    others = [
        Variant("K-Medoids from Ward", {"method": "kmedoids"}),
        Variant("WK-Medoids from top-K (paper)", {"method": "kmedoids", "init": "topk"}),
        Variant("bipartite (ToMe)", {"method": "bipartite"}),
        Variant("bipartite (ToMe), plain attention", {"method": "bipartite", "proportional": False}),
        Variant("top-K", {"method": "topk"}),
    ]
    return [*crossed, *others]


@torch.inference_mode()
def measure(
    model: nn.Module, transform: Callable, data: Path, limit: int | None, schedules: Sequence[str]
) -> list[Variant]:
    """Every variant at every schedule, on the same images."""
    source = open_images(data)
    numbers = evenly_spaced(len(source.labels), limit)
    rows = []
    for name in schedules:
        keep, layers = SCHEDULES[name]
        for variant in variants():
            variant.schedule, variant.model = name, twin(model)
            tpkernels.patch(variant.model, keep, layers=layers, **variant.options)
            rows.append(variant)
    chunks = [numbers[i : i + 50] for i in range(0, len(numbers), 50)]
    with tqdm(total=len(numbers) * len(rows), unit="img") as bar:
        for batch in batches(source, transform, chunks, 0):
            own = model(batch.images)
            for row in rows:
                assert row.model is not None
                row.add(row.model(batch.images), own, batch.labels)
                bar.update(len(batch.labels))
    return rows


def table(rows: list[Variant]) -> str:
    """Markdown: one line a variant, per schedule what it changes of the answers."""
    schedules = list(dict.fromkeys(row.schedule for row in rows))
    found = {(row.label, row.schedule): row.record() for row in rows}
    columns = [f"{name}: answers changed % (divergence, mnat)" for name in schedules]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(schedules)}"]
    for label in dict.fromkeys(row.label for row in rows):
        records = [found[label, name] for name in schedules]
        numbers = [f"{one['disagree_percent']:.2f} ({one['divergence_millinats']:.2f})" for one in records]
        lines.append(f"| {label} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, help="evenly spaced images; default: all")
    parser.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), metavar="NAME")
    parser.add_argument("--csv", type=Path, default=Path("runs/defaults.csv"))
    parser.add_argument("--document", type=Path, help="put the table between this document's markers")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    subject = load_small(args.checkpoint)
    rows = measure(subject.model.eval(), subject.transform, args.data, args.limit, args.schedule)
    records = [row.record() for row in rows]
    write_csv(args.csv, list(records[0]), records)
    text = f"{rows[0].images:,} images of {args.data.name}, {subject.name}, torch {torch.__version__}.\n\n{table(rows)}"
    if args.document is not None:
        write_document(args.document, "examples/ablate_defaults.py", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (FileError, OSError, ValueError, TypeError) as error:
        sys.exit(f"ablate_defaults: {error}")
