"""The tables of the page: one for each set of images and image size."""

from __future__ import annotations

from collections.abc import Sequence

from .images import KINDS
from .rows import Row, grouped
from .ways import WAYS

TITLES = {
    "plain": "Images as they are",
    "mixed": "The mix: as they are, padded, cropped, four in one",
}
COLUMNS = (
    "budget",
    "",
    "MACs %",
    "agreement %",
    "divergence x 1000",
    "its 99 %",
    "its largest",
    "feature's distance",
    "its 99 %",
    "its largest",
    "tokens after each pooling",
)
LABELS = {way.name: way.label for way in WAYS}


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    parts = []
    for some in grouped(rows, lambda row: (row.images_set, row.side)):
        first = some[0]
        single = "" if first.images_set == "plain" else ", four in one left out"
        title = (
            f"**{TITLES[first.images_set]}**, {first.side} px, {first.patches} tokens, {first.base_gmacs:.3f} GMACs; "
            f"{first.images} images, calibrated on {first.calibration} others; the unpooled model is right on "
            f"{100 * first.top1_unpooled:.1f} %{single}"
        )
        lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in some]
        parts.append("\n".join([title, "", *lines]))
        parts += _alike(some)
        if some[-1].images_set == "mixed":
            parts.append(_by_kind(some))
    return "\n\n".join(parts)


def _cells(row: Row) -> list[str]:
    same = row.way == "constant"
    agreement = "" if same else f" ({100 * row.agreement_gain:+.1f} ± {100 * row.agreement_se:.1f})"
    return [
        f"{100 * row.budget:g} %" if same else "",
        LABELS[row.way],
        f"{100 * row.share:.1f}",
        f"{100 * row.agreement:.1f}{agreement}",
        _gain(1000 * row.divergence, row.divergence, row.divergence_gain, row.divergence_se),
        f"{1000 * row.divergence_p99:.3g}",
        f"{1000 * row.divergence_max:.3g}",
        _gain(row.feature, row.feature, row.feature_gain, row.feature_se),
        f"{row.feature_p99:.3g}",
        f"{row.feature_max:.3g}",
        _tokens(row),
    ]


def _gain(shown: float, value: float, gain: float, error: float) -> str:
    """A value, and in per cent of the constant ratio's how far it is from that."""
    constant = value - gain
    if not gain or not constant:
        return f"{shown:.3g}"
    return f"{shown:.3g} ({100 * gain / constant:+.0f} ± {100 * error / constant:.0f} %)"


def _tokens(row: Row) -> str:
    """After each block that pools the mean, and where images differ their standard deviation and range."""
    columns = (row.blocks, row.tokens_mean, row.tokens_deviation, row.tokens_least, row.tokens_most)
    words = []
    for block, mean, deviation, least, most in zip(*(column.split() for column in columns), strict=True):
        spread = "" if least == most else f" ± {float(deviation):.0f} ({least} to {most})"
        words.append(f"{block}: {float(mean):.0f}{spread}")
    return ", ".join(words)


def _alike(rows: Sequence[Row]) -> list[str]:
    """Distances beside the searched tokens: what of the gain comes of images' different numbers."""
    lines = [
        "| budget | | agreement, points | divergence | its 99 % | feature's distance | its 99 % |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        if row.agreement_own is None or row.agreement_own_se is None:
            continue
        cells = [f"{100 * row.agreement_own:+.1f} ± {100 * row.agreement_own_se:.1f}"]
        for name in ("divergence", "divergence_p99", "feature", "feature_p99"):
            value, gain, error = (getattr(row, f"{name}{end}") for end in ("", "_own", "_own_se"))
            cells.append(f"{100 * gain / (value - gain):+.0f} ± {100 * error / (value - gain):.0f} %")
        lines.append(f"| {100 * row.budget:g} % | {LABELS[row.way]} | {' | '.join(cells)} |")
    said = "Distances less the searched tokens at the same blocks, image by image:"
    return [f"{said}\n\n" + "\n".join(lines)] if len(lines) > 2 else []


def _by_kind(rows: Sequence[Row]) -> str:
    """What each kind of image keeps and loses: the constant ratio and the searched tokens beside the distances."""
    lines = [f"| budget | | {' | '.join(KINDS)} |", "|---|---" + "|---" * len(KINDS) + "|"]
    for row in rows:
        if row.way not in ("constant", "searched", "distance"):
            continue
        tokens, divergence = (_pairs(column) for column in (row.kind_tokens, row.kind_divergence))
        cells = [f"{tokens[kind]:.0f}, {1000 * divergence[kind]:.3g}" for kind in KINDS if kind in tokens]
        budget = f"{100 * row.budget:g} %" if row.way == "constant" else ""
        lines.append(f"| {budget} | {LABELS[row.way]} | {' | '.join(cells)} |")
    last = [row for row in rows if row.way == "distance"]
    said = "Tokens at the end and divergence x 1000 by the kind of image, means:\n\n" + "\n".join(lines)
    if last:
        some = last[-1]
        said += (
            f"\n\nAt {100 * some.budget:g} % the image that keeps the fewest by distances is {_one(some.fewest)}, the "
            f"one that keeps the most is {_one(some.most)} tokens."
        )
    return said


def _pairs(column: str) -> dict[str, float]:
    words = column.split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


def _one(image: str) -> str:
    """ "four 157 121 99" as words."""
    kind, *counts = image.split()
    return f"of kind {kind}: {', '.join(counts)}"
