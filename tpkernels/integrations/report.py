"""The summary of a patched model, and its text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..schedule.macs import Macs


@dataclass(frozen=True)
class Summary:
    """A patched model: `str()` of it is a table.

    model: the class; schedule: patch tokens after each block; num_prefix_tokens: never pooled; macs: for one image at
    the model's own size, per layer and in all, the clustering apart.
    """

    model: str
    method: str
    init: str | None
    refine: str | None
    output: str
    weighted: bool
    proportional: bool
    position: str
    restore: bool
    schedule: tuple[int, ...]
    num_prefix_tokens: int
    macs: Macs

    def __str__(self) -> str:
        start = f" from {self.init}" if self.init else ""
        start += f", refined by {self.refine}s" if self.refine else ""
        words = [f"{self.method}{start}", f"output {self.output}", f"after {self.position}"]
        words += ["weighted by significance"] if self.weighted else []
        words += ["proportional attention"] if self.proportional else []
        words += ["tokens restored at the end"] if self.restore else []
        lines = [
            f"{self.model}: {', '.join(words)}; {self.num_prefix_tokens} prefix tokens beside the patches",
            f"{'block':>5} {'tokens in':>10} {'out':>6} {'attention':>12} {'MLP':>12} {'clustering':>12}  MMAC",
        ]
        for row in self.macs.per_layer:
            parts = " ".join(f"{part / 1e6:12.2f}" for part in (row.attention, row.mlp, row.clustering))
            lines.append(f"{row.layer:>5} {row.tokens_in:>10} {row.tokens_out:>6} {parts}")
        total, base = self.macs.total / 1e9, self.macs.base / 1e9
        lines.append(
            f"{total:.3f} GMAC with clustering ({self.macs.clustering / 1e9:.3f}), {100 * self.macs.ratio:.1f} % of "
            f"{base:.3f}"
        )
        return "\n".join(lines)


def describe(model: nn.Module, **facts: object) -> Summary:
    """A Summary of a model by its class name."""
    return Summary(model=type(model).__name__, **facts)  # type: ignore[arg-type]
