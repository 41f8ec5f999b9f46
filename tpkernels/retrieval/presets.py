"""How documents are pooled, and what the retrieval packages do: `PRESETS`, by the package's name.

All cluster by Ward's method (Clavié, Chaffin and Adams, arXiv 2409.14683), and none the vectors as points: they give
scipy `1 - x . y`, condensed or as the rows of a square matrix. Read from colpali-engine 0.3.18, PyLate 1.6.0,
sentence-transformers 6.2.0, ColBERT 0.2.22 and next-plaid 1.6.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import checks
from ..names import METRICS

PLACES = ("start", "end")
ROUNDINGS = ("floor", "nearest")


class Rules(NamedTuple):
    """How documents are pooled, whatever the budget is.

    protected: first tokens of a document that are kept; they come out in front of the clusters (protected_at="start")
    or behind them ("end"). distance: a metric of `tpkernels.ward`. rounding: of a factor's quotient. normalize: True
    makes means unit vectors, "all" every vector that is returned. of_all: a factor divides all tokens, not only those
    that aren't protected. as_colpali: a factor is an int, 1 returns the input, and a document has two tokens or more.
    on_cpu: lists, and packed rows, are returned on the CPU.
    """

    protected: int = 0
    protected_at: str = "start"
    distance: str = "euclidean"
    rounding: str = "floor"
    normalize: bool | str = True
    of_all: bool = False
    as_colpali: bool = False
    on_cpu: bool = False

    @property
    def fewest(self) -> int:
        """Tokens that a document has at least."""
        return 2 if self.as_colpali else 0


PRESETS = {
    "colpali": Rules(distance="rows", as_colpali=True),
    "pylate": Rules(protected=1, distance="dot", normalize=False, on_cpu=True),
    "sentence-transformers": Rules(protected=1, distance="clipped", normalize="all"),
    "colbert": Rules(protected_at="end", distance="rows", normalize=False, of_all=True),
    "next-plaid": Rules(protected=1, distance="dot", normalize=False),
}


def resolve(preset: str | None, **given: Any) -> Rules:
    """The rules of a preset, or without one the library's own, with what is given in place of them.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if preset is not None:
        checks.one_of("preset", preset, PRESETS)
    rules = Rules() if preset is None else PRESETS[preset]
    rules = rules._replace(**{name: value for name, value in given.items() if value is not None})
    checks.count("protected", rules.protected, 0)
    checks.one_of("protected_at", rules.protected_at, PLACES)
    checks.one_of("distance", rules.distance, METRICS)
    checks.one_of("rounding", rules.rounding, ROUNDINGS)
    if not isinstance(rules.normalize, bool) and rules.normalize != "all":
        raise ValueError(f'normalize must be True, False or "all", got {rules.normalize!r}')
    return rules
