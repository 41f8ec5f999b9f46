"""How near the least objective each clusterer ends, on the tokens of a real model, block by block.

    python examples/clustering_quality.py --document docs/results.md

The K-Medoids objective of what each method finds, over that of FasterPAM (the package `kmedoids`, one sample at a time;
the better of its runs from random medoids and from Ward's): 1.00 is as good. Partitions of Ward and K-Means are given
their best medoids first. Equal weights; patch tokens after each block's attention, where TokenPool takes them.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from common.arguments import CHECKPOINT, DATA, Parser, one_line_of
from common.document import around_marks, write_document
from common.images import all_read, batches, evenly_spaced, open_images
from deit.subjects import load_small
from experiments.lowpass.record import record
from torch import Tensor
from tqdm import tqdm

import tpkernels

PROGRAM = "examples/clustering_quality.py"
# Tokens [B, N, D], significance [B, N] and K: the medoids [B, K] of what a method finds.
Solver = Callable[[Tensor, Tensor, int], Tensor]


def _by_kmedoids(**options: str) -> Solver:
    def solve(x: Tensor, significance: Tensor, k: int) -> Tensor:
        paper = options.get("init") == "topk"
        given = {**options, "init": significance.topk(k, sorted=False).indices.sort(1).values} if paper else options
        return tpkernels.kmedoids(x, k, **given).medoids

    return solve


def _by_ward(x: Tensor, significance: Tensor, k: int) -> Tensor:
    return tpkernels.medoid_update(x, tpkernels.ward(x, k).assignment, k)


def _by_kmeans(x: Tensor, significance: Tensor, k: int) -> Tensor:
    return tpkernels.medoid_update(x, tpkernels.kmeans(x, k).assignment, k)


METHODS: dict[str, Solver] = {
    "Ward": _by_ward,
    "K-Means from Ward": _by_kmeans,
    "K-Medoids from Ward": _by_kmedoids(),
    "K-Medoids from Ward, swaps": _by_kmedoids(refine="swap"),
    "K-Medoids from farthest-first": _by_kmedoids(init="farthest"),
    "K-Medoids from farthest-first, swaps": _by_kmedoids(init="farthest", refine="swap"),
    "K-Medoids from top-K (paper)": _by_kmedoids(init="topk"),
    "K-Medoids from top-K, swaps": _by_kmedoids(init="topk", refine="swap"),
}


def objective(sqdist: Tensor, medoids: Tensor) -> Tensor:
    """`sum_i min_k ||x_i - x_{m_k}||^2` [B] of squared distances [B, N, N] and medoids [B, K], in float64."""
    return sqdist.gather(1, medoids[..., None].expand(-1, -1, sqdist.shape[2])).amin(1).sum(1)


def fasterpam(sqdist: Tensor, start: Tensor) -> Tensor:
    """The lower of FasterPAM's objectives [B] from medoids `start` [B, K] and from random ones, of sqdist [B, N, N]."""
    import kmedoids

    least = []
    for one, first in zip(sqdist.float().numpy(), start.numpy(), strict=True):
        runs = kmedoids.fasterpam(one, first.astype("uint64")), kmedoids.fasterpam(one, len(first), random_state=0)
        found = [torch.from_numpy(run.medoids.astype("int64"))[None] for run in runs]
        least.append(min(float(objective(torch.from_numpy(one).double()[None], medoids)) for medoids in found))
    return torch.tensor(least, dtype=torch.float64)


def ratios(x: Tensor, significance: Tensor, k: int) -> dict[str, Tensor]:
    """Each method's objective over FasterPAM's [B], for tokens x [B, N, D]."""
    wide = x.double()
    sqdist = tpkernels.pairwise_sqdist(wide)
    bound = fasterpam(sqdist, _by_ward(x, significance, k))
    return {name: objective(sqdist, solve(x, significance, k)) / bound for name, solve in METHODS.items()}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("clustering_quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of class folders, or of IDX files")
    parser.add_argument("--limit", type=int, default=100, help="evenly spaced images")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 3, 6, 9], help="0-based")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--document", type=Path, help="put the tables between this document's marks")
    args = parser.parse_args(argv)
    if args.limit < 1:
        parser.error(f"--limit must be at least 1, got {args.limit}")
    if importlib.util.find_spec("kmedoids") is None:
        parser.error('FasterPAM is in the package kmedoids: pip install -c constraints.txt -e ".[bench]"')
    return args


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes.

    Raises:
        CheckpointError, DataError, OSError, ValueError, TypeError: with a message for the user.
    """
    if args.document is not None:
        around_marks(args.document, PROGRAM)
    subject = load_small(args.checkpoint)
    model = subject.model
    depth, prefix = len(model.blocks), model.num_prefix_tokens
    if not all(0 <= block < depth for block in args.blocks):
        raise ValueError(f"--blocks must lie in 0..{depth - 1}, got {args.blocks}")
    source = open_images(args.data)
    numbers = evenly_spaced(len(source.labels), args.limit)
    chunks = [numbers[i : i + 20] for i in range(0, len(numbers), 20)]
    found: dict[tuple[float, int], dict[str, list[Tensor]]] = {}
    with tqdm(total=len(numbers), unit="image", mininterval=5) as bar:
        for batch in all_read(batches(source, subject.transform, chunks, workers=0), args.data):
            for block, layer in enumerate(record(model, batch.images)):
                if block not in args.blocks:
                    continue
                x = layer.after_attention[:, prefix:].contiguous()
                significance = tpkernels.attention(layer.queries, layer.keys, layer.values)[1][:, prefix:]
                for keep in args.keep:
                    k = tpkernels.tokens_kept(keep, x.shape[1])
                    of_case = found.setdefault((keep, block), {name: [] for name in METHODS})
                    for name, value in ratios(x, significance, k).items():
                        of_case[name].append(value)
            bar.update(len(batch.labels))
    tables = markdown(found, args.keep, args.blocks)
    facts = f"{subject.name}, {len(numbers)} images of {args.data.name}; objective over FasterPAM's, mean (largest)"
    if args.document is not None:
        write_document(args.document, PROGRAM, f"{facts}\n\n{tables}")
    print(f"{facts}\n\n{tables}")


def markdown(found: dict[tuple[float, int], dict[str, list[Tensor]]], keeps: list[float], blocks: list[int]) -> str:
    """A table for each share of tokens kept: a row a method, a column a block."""
    lines: list[str] = []
    for keep in keeps:
        lines += ["", f"| keep {keep:g} | " + " | ".join(f"block {block}" for block in blocks) + " |"]
        lines.append("|---" * (1 + len(blocks)) + "|")
        for name in METHODS:
            cells = [torch.cat(found[keep, block][name]) for block in blocks]
            lines.append(f"| {name} | " + " | ".join(f"{c.mean():.3f} ({c.max():.3f})" for c in cells) + " |")
    return "\n".join(lines).strip()


def main(argv: list[str] | None = None) -> None:
    with one_line_of("clustering_quality"):
        run(parse_args(argv))


if __name__ == "__main__":
    main()
