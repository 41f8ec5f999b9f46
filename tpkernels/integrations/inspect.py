"""What can be read from a patched model: its schedule, a summary and its text, and the trace of a forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..schedule.keep import resolve_keep
from ..schedule.macs import Macs, count_macs
from ..schedule.shapes import ViTShape
from .distribution import Distribution
from .plan import Plan
from .source_map import Trace
from .towers import Found, patched_in


@dataclass(frozen=True)
class Summary:
    """A patched model: `str()` of it is a table.

    model: the class; schedule: patch tokens after each block for an image of the model's own size, of num_patches
    tokens; num_prefix_tokens: never pooled; macs: for such an image, per layer and in all, the clustering apart.
    distance: for each block the distance below which clusters merge, None where it does not pool; None where all images
    keep the same. By distances, schedule and macs are the most that an image keeps and takes, and calibrated is what
    images kept and took, None where the schedule does not say.
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
    distance: tuple[float | None, ...] | None = None
    calibrated: Distribution | None = None

    @property
    def num_patches(self) -> int:
        """Patch tokens that enter the first block."""
        return self.macs.per_layer[0].tokens_in

    def __str__(self) -> str:
        start = f" from {self.init}" if self.init else ""
        start += f", refined by {self.refine}s" if self.refine else ""
        words = [f"{self.method}{start}", f"output {self.output}", f"after {self.position}"]
        words += ["by distance"] if self.distance else []
        words += ["weighted by significance"] if self.weighted else []
        words += ["proportional attention"] if self.proportional else []
        words += ["tokens restored at the end"] if self.restore else []
        titles = f"{'block':>5} {'tokens in':>10} {'out':>6} {'attention':>12} {'MLP':>12} {'clustering':>12}  MMAC"
        if self.distance:
            titles += f"{'distance':>12}" + ("   tokens kept: mean, least to most" if self.calibrated else "")
        lines = [
            f"{self.model}: {', '.join(words)}; {self.num_prefix_tokens} prefix tokens beside the "
            f"{self.num_patches} patches of an image of its own size",
            titles,
        ]
        for row in self.macs.per_layer:
            parts = " ".join(f"{part / 1e6:12.2f}" for part in (row.attention, row.mlp, row.clustering))
            lines.append(f"{row.layer:>5} {row.tokens_in:>10} {row.tokens_out:>6} {parts}{self._kept(row.layer)}")
        total, base = self.macs.total / 1e9, self.macs.base / 1e9
        lines.append(
            f"{total:.3f} GMAC with clustering ({self.macs.clustering / 1e9:.3f}), {100 * self.macs.ratio:.1f} % of "
            f"{base:.3f}" + (", for an image that keeps the most" if self.distance else "")
        )
        if self.calibrated is not None:
            mean, least, most = (100 * getattr(self.calibrated, f"{one}_ratio") for one in ("mean", "least", "most"))
            lines.append(
                f"{mean:.1f} % in the mean of the {self.calibrated.images} images that it was calibrated on, "
                f"{least:.1f} to {most:.1f} %"
            )
        elif self.distance:
            lines.append("not calibrated: what images keep is not known before they come")
        return "\n".join(lines)

    def _kept(self, layer: int) -> str:
        """A row's end: the distance, and what images kept."""
        if self.distance is None:
            return ""
        one, kept = self.distance[layer], self.calibrated
        # Below the title's unit, too.
        end = f"{'-' if one is None else format(one, '.4g'):>18}"
        return end + (f"   {kept.mean[layer]:.1f}, {kept.least[layer]} to {kept.most[layer]}" if kept else "")


def describe(model: nn.Module, **facts: object) -> Summary:
    """A Summary of a model by its class name."""
    return Summary(model=type(model).__name__, **facts)  # type: ignore[arg-type]


def schedule_of(model: nn.Module, *, tower: str | None = None) -> list[int]:
    """Patch tokens that a patched model leaves after each block for an image of its own size.

    For other sizes see `trace`, and `TokenPool.output_len`: ratios hold at every size, counts are the same at all. By
    distances these are the most that an image keeps.

    Args:
        tower: path of the vision tower, where several in the model are patched.

    Raises:
        ValueError: the model is not patched, or several of its towers are.
    """
    found, plan = _patched(model, tower)
    return list(_schedule(found, plan, model)[0])


def summary(model: nn.Module, *, tower: str | None = None) -> Summary:
    """Tokens and MACs per layer of a patched model for an image of its own size, and what it pools with. Print it.

    Args:
        tower: path of the vision tower, where several in the model are patched.

    Raises:
        ValueError: the model is not patched, or several of its towers are.
    """
    found, plan = _patched(model, tower)
    schedule, shape = _schedule(found, plan, model)
    pool = next((pool for pool in plan.pools if pool is not None), None)
    if schedule[-1] == shape.num_patches and plan.distance is None:
        pool = None
    method, init = ("ward", "ward") if pool is None else (pool.method, pool.init)
    options: dict[str, Any] = {"method": method, "init": init, "position": plan.position}
    if pool is not None:
        options["max_iter"] = pool.max_iter
    return describe(
        model,
        method="nothing pooled" if pool is None else method,
        init=init if method in ("kmeans", "kmedoids") else None,
        refine=None if pool is None else pool.refine,
        output="mean" if pool is None else pool.output,
        weighted=pool is not None and pool.weighted,
        proportional=plan.proportional,
        position=plan.position,
        restore=plan.restores(plan.family.facts(found.tower)),
        schedule=schedule,
        num_prefix_tokens=shape.num_prefix_tokens,
        macs=count_macs(shape, schedule, **options),
        distance=plan.distance,
        calibrated=plan.calibrated,
    )


@contextmanager
def trace(model: nn.Module, *, tower: str | None = None) -> Iterator[Trace]:
    """Watches a patched model: after a forward inside, the Trace says which token holds each input token.

        with tpkernels.trace(model) as trace:
            model(images)
        trace.sources[-1]  # [B, P + N]

    Nothing is kept by the model. One forward at a time, in one thread: the last one is what the Trace holds.

    Args:
        tower: path of the vision tower, where several in the model are patched.

    Raises:
        ValueError: the model is not patched, several of its towers are, or it is being watched already.
    """
    container: Any = _patched(model, tower)[0].container
    if container.trace is not None:
        raise ValueError(f"model must not be watched by another trace, got {type(model).__name__}, which is")
    container.trace = Trace()
    try:
        yield container.trace
    finally:
        container.trace = None


def _patched(model: nn.Module, tower: str | None) -> tuple[Found, Plan]:
    found = patched_in(model, tower)
    if not found:
        raise ValueError(f"model must be patched with tpkernels.patch, got an unpatched {type(model).__name__}")
    if len(found) > 1:
        paths = ", ".join(one.path or "itself" for one in found)
        raise ValueError(f"tower must be given where several towers of a model are patched: one of {paths}")
    container: Any = found[0].container
    return found[0], container.plan


def _schedule(found: Found, plan: Plan, model: nn.Module) -> tuple[tuple[int, ...], ViTShape]:
    """Patch tokens after each block, and the shape of the tower as it is now."""
    shape = plan.family.shape(found.tower, model)
    prefix = plan.num_prefix_tokens if plan.told_prefix else shape.num_prefix_tokens
    shape = replace(shape, num_prefix_tokens=prefix)
    return tuple(resolve_keep(plan.keep, shape.depth, shape.num_patches)), shape
