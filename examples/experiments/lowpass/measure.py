"""All that is measured of one block, one number (or curve) an image, and the block's row of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .gaussian import compare, softmax_rows
from .record import Layer
from .redundancy import KEPT, errors
from .spectrum import MEDIAN, QUANTILES, Basis, attention_weights, basis, energy_above

SIGNALS = ("values", "attended", "before", "update", "after_attention", "after_mlp")
GRAPHS = ("grid", "attention")
# Signals after a filter, each with the signal before it.
FILTERED = {"attended": "values", "update": "before", "after_attention": "before", "after_mlp": "after_attention"}
CLUSTERED = ("before", "update", "after_attention")
# The shares of tokens kept that the table shows.
SHOWN_KEPT = (0.5, 0.7)


def signals(layer: Layer, prefix: int) -> dict[str, Tensor]:
    """The block's patch tokens [B, P, channels] on their way, in float64.

    values and attended: what attention averages and the averages, the heads side by side; before: the block's input;
    update: what attention adds to it, after its projection; after_attention: their sum; after_mlp: the block's output.
    """
    before, after = layer.before.double(), layer.after_attention.double()
    found = {
        "values": layer.values.transpose(1, 2).flatten(2).double(),
        "attended": layer.attended.double(),
        "before": before,
        "update": after - before,
        "after_attention": after,
        "after_mlp": layer.after_mlp.double(),
    }
    return {name: x[:, prefix:] for name, x in found.items()}


def measure(layer: Layer, grid: Basis, prefix: int) -> dict[str, Tensor]:
    """What one block does to B images.

    Args:
        layer: what `record` saw. grid: waves of the grid of patches. prefix: tokens before the patches.

    Returns:
        What `gaussian.compare` returns; `energy_GRAPH_SIGNAL` [B, 1 + Q] for every graph and signal, as
        `spectrum.energy_above` gives it; `error_SIGNAL` [B, len(KEPT)] as `redundancy.errors` gives it.
    """
    found = compare(layer.queries, layer.keys)
    attention = softmax_rows(layer.queries.double(), layer.keys.double())
    graphs = {"grid": grid, "attention": basis(attention_weights(attention, prefix))}
    tokens = signals(layer, prefix)
    for graph in GRAPHS:
        for name, x in tokens.items():
            found[f"energy_{graph}_{name}"] = energy_above(graphs[graph], x)
    for name in CLUSTERED:
        found[f"error_{name}"] = errors(tokens[name])
    return found


def shares(energies: Tensor) -> Tensor:
    """Shares of energy above each cut [M, Q] of energies [M, 1 + Q]; 0 for tokens that are all equal."""
    return energies[:, 1:] / energies[:, :1].clamp(min=torch.finfo(energies.dtype).tiny)


def summarise(number: int, found: Mapping[str, Tensor]) -> dict[str, float | int]:
    """The block's row of the table, from what `measure` found of all M images.

    `identity_*` are maxima, the rest means over images. `high_GRAPH_SIGNAL`: share of the energy above the median
    frequency. `smoother_GRAPH_SIGNAL`: share of the images on which that is less than before (FILTERED names the
    before). `gain_GRAPH_low` and `_high`: energy of attended over energy of values, below and above the median.
    `error_SIGNAL_KEPT`: reconstruction error over the variance.
    """
    row: dict[str, float | int] = {"block": number, "images": len(found["tv_gaussian"])}
    for name in ("identity_float64", "identity_float32"):
        row[name] = float(found[name].max())
    for name in ("tv_gaussian", "tv_normalised", "tv_uniform", "key_norm_cv"):
        row[name] = float(found[name].mean())
    for graph in GRAPHS:
        high = {name: shares(found[f"energy_{graph}_{name}"])[:, MEDIAN] for name in SIGNALS}
        for name in SIGNALS:
            row[f"high_{graph}_{name}"] = float(high[name].mean())
        for after, before in FILTERED.items():
            row[f"smoother_{graph}_{after}"] = float((high[after] < high[before]).double().mean())
        (all_in, high_in), (all_out, high_out) = (
            found[f"energy_{graph}_{name}"][:, [0, 1 + MEDIAN]].sum(0).tolist() for name in ("values", "attended")
        )
        row[f"gain_{graph}_low"] = (all_out - high_out) / (all_in - high_in)
        row[f"gain_{graph}_high"] = high_out / high_in
    for name in CLUSTERED:
        for kept in SHOWN_KEPT:
            row[f"error_{name}_{kept}"] = float(found[f"error_{name}"][:, KEPT.index(kept)].mean())
    return row


def curves(number: int, found: Mapping[str, Tensor]) -> Iterator[dict[str, float | int | str]]:
    """The block's lines of the second table, means over images: energy above each cut, error at each K."""
    for graph in GRAPHS:
        for name in SIGNALS:
            mean = shares(found[f"energy_{graph}_{name}"]).mean(0).tolist()
            at = dict(zip(map(str, QUANTILES), mean, strict=True))
            yield {"block": number, "curve": f"energy above, {graph} graph", "signal": name, **at}
    for name in CLUSTERED:
        at = dict(zip(map(str, KEPT), found[f"error_{name}"].mean(0).tolist(), strict=True))
        yield {"block": number, "curve": "error at kept", "signal": name, **at}
