"""What every block would lose at every number of tokens, measured on images in one pass of the unpooled model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..functional import ward
from ..schedule.shapes import block_in
from .towers import patched_in, read_tower

# Images for `model(images)`, or keyword arguments for `model(**batch)`.
Batches = Iterable[Tensor | Mapping[str, Any]]


def reconstruction_errors(
    model: nn.Module, batches: Batches, *, relative: bool = True, tower: str | None = None,
    backend: str = "auto",
) -> Tensor:  # fmt: skip
    """The least squared error with which k clusters reconstruct a block's N patch tokens, for every block and every k.

    The tokens are those that a block would pool: after its attention, before its MLP. One run of Ward prices every k:
    the error of k clusters is the sum of its N - k lowest merge heights (Ward, 1963). An image's errors are divided by
    its tokens' total variance, `sum_i ||x_i - mean||^2`, the error of one cluster: they lie in [0, 1], and blocks with
    large channels don't outweigh the others. Then the mean over the images is taken. Equal tokens lose 0.

    The model runs in eval mode without gradients, and is afterwards as it was.

    Args:
        model: a vision transformer that `patch` takes, not patched.
        batches: images [B, C, H, W] for `model(images)`, or keyword arguments for `model(**batch)`; of the model's own
            image size, on its device.
        relative: False for the squared errors themselves.
        tower: path of the vision tower, where the model holds several.
        backend: as `ward` takes it.

    Returns:
        [L, N] float64 on the CPU; `errors[l, k - 1]` is what block l loses at k tokens, 0 at N.

    Raises:
        TypeError: a model that `patch` does not take, or a batch of another type.
        ValueError: a patched model, no images, images of another size, tokens that are not finite, or more tokens than
            Ward takes.
    """
    checks.flag("relative", relative)
    if patched_in(model, tower):
        raise ValueError(
            f"model must not be patched, since its own tokens are measured; got a patched {type(model).__name__}: "
            "unpatch it first"
        )
    (_, _, family, container), shape, _ = read_tower(model, tower, "tpkernels.reconstruction_errors")
    n = shape.num_patches
    checks.ward_fits(n)
    sums = torch.zeros(shape.depth, n, dtype=torch.float64)
    images = [0] * shape.depth

    def measure(layer: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0][:, shape.num_prefix_tokens :]
        if tokens.shape[1] != n:
            raise ValueError(f"batches must give {n} patch tokens, the model's own, got {tokens.shape[1]}")
        losses = price_all(tokens, relative, backend)
        if not bool(losses.isfinite().all()):
            raise ValueError(
                f"batches must give finite tokens, got NaN or infinity after the attention of block {layer}"
            )
        sums[layer] += losses.sum(0)
        images[layer] += len(losses)

    norms = [family.norm2(block_in(child)) for child in container.children()]
    hooks = [norm.register_forward_pre_hook(partial(measure, layer)) for layer, norm in enumerate(norms)]
    try:
        with evaluated(model):
            for batch in batches:
                run_batch(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if min(images) == 0 or min(images) != max(images):
        raise ValueError(f"batches must give every block the same images, at least one, got {images} by block")
    return sums / images[0]


def price_all(x: Tensor, relative: bool, backend: str = "auto") -> Tensor:
    """Ward's squared error of x [B, N, D] at k = 1 to N clusters: [B, N] float64 on the CPU.

    Args:
        relative: as shares of the error of one cluster; 0 where that is 0.
    """
    heights = ward(x, 1, backend=backend).merge_heights
    assert heights is not None
    # The sum of the first j heights is the error of N - j clusters.
    losses = nn.functional.pad(heights.double().cpu().cumsum(1), (1, 0)).flip(1)
    if not relative:
        return losses
    whole = losses[:, :1]
    return torch.where(whole == 0, 0.0, losses / whole)


def run_batch(model: nn.Module, batch: Tensor | Mapping[str, Any]) -> None:
    """Calls a model on images, or on a mapping of its arguments; TypeError for anything else."""
    if isinstance(batch, Tensor):
        model(batch)
    elif isinstance(batch, Mapping):
        model(**batch)
    else:
        raise TypeError(f"batches must hold tensors or mappings of arguments, got {type(batch).__name__}")


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, afterwards as it was; without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        # Not by train(), which would set every submodule to the model's mode.
        for module, mode in modes:
            module.training = mode
