"""The command line of `python -m tpkernels.retrieval`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import torch

from .bar import Progress
from .index.job import Report, pool_index
from .index.source import FLOATS
from .index.state import partial_of
from .presets import PRESETS

_PROGRAM = "python -m tpkernels.retrieval"
_EXAMPLE = f"""example:
  {_PROGRAM} pool docs.safetensors pooled.safetensors --pool-factor 3 --protected 1
"""
_FILES = """IN and OUT are .safetensors or .npz files of `embeddings` [T, D], the vectors of one document after another,
and `lengths` [B], how many each has; or folders of embeddings.npy and lengths.npy. They may be larger than memory.
A run that was interrupted leaves OUT.partial, from which the same command continues."""
_NORMALIZE = {"true": True, "all": "all", "false": False}
# The arguments of pool_embeddings, which are options of the same names.
_ARGUMENTS = (
    *("pool_factor", "max_tokens", "distance_threshold", "max_error"),
    *("protected", "protected_at", "distance", "rounding", "normalize", "preset"),
)
_OPTIONS = (*_ARGUMENTS, "dtype", "device", "buffer_tokens", "threads")


class _Parser(argparse.ArgumentParser):
    """Ends with one line where an argument is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit status: 1 for what cannot be done, 130 for Ctrl-C."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        return _end("interrupted" + _kept(chosen.target), 130)
    except ImportError as error:
        return _end(f"{error}: pip install 'tpkernels[retrieval]'")
    except torch.OutOfMemoryError:
        return _end("the device has too little memory: choose a smaller --buffer-tokens, and --restart")
    except MemoryError:
        return _end("too little memory: choose a smaller --buffer-tokens, and --restart")
    except OSError as error:
        # A write to an open file that fails names none.
        return _end(f"{error.filename or chosen.target}: {error.strerror or error}{_kept(chosen.target)}")
    except (ValueError, TypeError, RuntimeError) as error:
        return _end(_as_options(str(error)))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        _PROGRAM, description="Token pooling of multi-vector documents.", epilog=_EXAMPLE, formatter_class=raw
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_pool(
        commands.add_parser(
            "pool", help="pool an index on disk", description=_FILES, epilog=_EXAMPLE, formatter_class=raw
        )
    )
    return parser


def _add_pool(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_pool)
    parser.add_argument("source", metavar="IN", type=Path, help="the index that is read")
    parser.add_argument("target", metavar="OUT", type=Path, help="the index that is written, its format by its suffix")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--pool-factor", type=_number, metavar="F", help="a cluster for so many tokens")
    budget.add_argument("--max-tokens", type=int, metavar="N", help="at most so many vectors a document")
    budget.add_argument("--distance-threshold", type=float, metavar="T", help="merge what is at most this far apart")
    budget.add_argument("--max-error", type=float, metavar="E", help="lose at most this share of a document's variance")
    parser.add_argument("--protected", type=int, metavar="P", help="first tokens of a document that are kept (0)")
    parser.add_argument("--protected-at", choices=("start", "end"), help="where they come out (start)")
    parser.add_argument("--distance", metavar="NAME", help="euclidean, cosine, dot, clipped or rows (euclidean)")
    parser.add_argument("--rounding", choices=("floor", "nearest"), help="of the number of clusters (floor)")
    normal = parser.add_mutually_exclusive_group()
    normal.add_argument(
        "--normalize", choices=_NORMALIZE, help="which vectors get length 1: means, all, or none (true)"
    )
    normal.add_argument(
        "--no-normalize", dest="normalize", action="store_const", const="false", help="the same as false"
    )
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), help="what a package does, but for the options given beside it"
    )
    parser.add_argument("--dtype", choices=tuple(FLOATS), help="of OUT's vectors (IN's)")
    parser.add_argument("--buffer-tokens", type=int, default=32768, metavar="N", help="pooled at once (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    parser.add_argument("--restart", action="store_true", help="drop what an interrupted run left")
    parser.add_argument("--quiet", action="store_true", help="neither bar nor summary")


def _pool(chosen: argparse.Namespace) -> int:
    arguments = {name: getattr(chosen, name) for name in _ARGUMENTS if getattr(chosen, name) is not None}
    if "normalize" in arguments:
        arguments["normalize"] = _NORMALIZE[arguments["normalize"]]
    if chosen.threads is not None:
        if chosen.threads < 1:
            raise ValueError(f"threads must be at least 1, got {chosen.threads}")
        torch.set_num_threads(chosen.threads)
    with closing(Progress()) as progress:
        report = pool_index(
            chosen.source,
            chosen.target,
            arguments,
            dtype=chosen.dtype,
            device=_device(chosen.device),
            buffer_tokens=chosen.buffer_tokens,
            overwrite=chosen.overwrite,
            restart=chosen.restart,
            progress=(lambda done, total: None) if chosen.quiet else progress,
        )
    if not chosen.quiet:
        print(_summary(report))
    return 0


def _summary(report: Report) -> str:
    source, totals = report.source, report.totals
    before = source.tokens * source.dim * source.dtype.itemsize
    finite = totals.documents - totals.not_finite
    continued = f", {report.continued_from:,} of them in an earlier run" if report.continued_from else ""
    rows = [
        ("documents", f"{totals.documents:,}{continued}"),
        ("vectors", f"{totals.tokens:,} -> {totals.vectors:,} ({_ratio(totals.tokens, totals.vectors)})"),
        ("MB", f"{before / 1e6:,.2f} -> {report.bytes_after / 1e6:,.2f} ({_ratio(before, report.bytes_after)})"),
    ]
    if finite:
        mean = totals.error / finite
        rows.append(("error", f"{mean:.4f} mean, {totals.worst:.4f} worst (document {totals.worst_document})"))
    rows.append(("not finite", f"{totals.not_finite:,} documents"))
    if source.others:
        rows.append(("not copied", ", ".join(source.others)))
    rows.append(("seconds", f"{report.seconds:.1f}"))
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}x" if after else "1x"


def _number(text: str) -> float:
    """An int where it is one, since some presets take no other."""
    return int(text) if text.isdigit() else float(text)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} is not there: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _as_options(message: str) -> str:
    """A message with the names of options in place of arguments'."""
    words = "|".join(name for name in _OPTIONS if "_" in name)
    first = "|".join(name for name in _OPTIONS if "_" not in name)
    message = re.sub(rf"\b({words})\b", lambda found: "--" + found[0].replace("_", "-"), message)
    return re.sub(rf"^({first})\b", r"--\1", message)


def _kept(target: Path) -> str:
    return "; what is done is kept, the same command continues" if partial_of(target).exists() else ""


def _end(message: str, status: int = 1) -> int:
    # Names in a damaged file may be anything.
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(message.split()))
    print(f"{_PROGRAM}: {line}", file=sys.stderr)
    return status
