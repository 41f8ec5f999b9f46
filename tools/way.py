"""The way of one call through the package: `python -m tools.way [--list]`.

Counts the calls of Python functions of `tpkernels` that one `tpkernels.ward` of 4 x 49 x 32 tokens on a CPU makes, the
files that they stand in, and how often one call stands in another file than the call before it. Compiled loops are not
Python, and count as the wrapper that calls them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SHAPE, CLUSTERS = (4, 49, 32), 12


class Way(NamedTuple):
    """Calls as (file, function), in their order."""

    calls: list[tuple[str, str]]

    @property
    def files(self) -> list[str]:
        """The files, in the order in which they are first entered."""
        return list(dict.fromkeys(file for file, _ in self.calls))

    @property
    def changes(self) -> int:
        """Calls that stand in another file than the call before them."""
        return len(list(groupby(file for file, _ in self.calls))) - 1


def way(call: Callable[[], Any], package: Path) -> Way:
    """The functions of a package that a call enters; comprehensions are part of the function that they stand in."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{package}/") and not code.co_name.endswith("comp>"):
            found.append((str(Path(code.co_filename).relative_to(package)), code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Way(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the counts, with --list each call."""
    parser = argparse.ArgumentParser(prog="python -m tools.way", description=__doc__)
    parser.add_argument("--list", action="store_true", help="also print each call, a line each")
    options = parser.parse_args(argv)

    import torch

    import tpkernels

    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    # The first call compiles, loads and caches; later ones do not.
    tpkernels.ward(x, CLUSTERS)
    found = way(lambda: tpkernels.ward(x, CLUSTERS), Path(tpkernels.__file__).parent)
    if options.list:
        for file, function in found.calls:
            print(f"{file:<28}{function}")
    print(f"{len(found.calls)} calls in {len(found.files)} files, {found.changes} changes of file")
    for file in found.files:
        lines = len((Path(tpkernels.__file__).parent / file).read_text().splitlines())
        print(f"{lines:>5} lines  {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
