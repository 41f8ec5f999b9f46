"""Images as documents of many vectors, as ColPali makes them (Faysse et al., arXiv 2407.01449), and queries for them.

A document is the class token and the patch tokens that show something, of one image or of several, unit vectors from
the small DeiT. A query is some tokens of another view of a document's first image: shifted, of other contrast, noisy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from common.data import DataError
from common.images import ImageSet, batches
from deit.model import DeiT
from deit.subjects import Subject
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Of the full range: patches that are darker everywhere are background.
BACKGROUND = 0.1
SHIFT, CONTRAST, NOISE = 2, 0.2, 0.05
QUERY_TOKENS = 16
BATCH = 50


class Ragged(NamedTuple):
    """vectors [B, N, D] with zeros for padding, and mask [B, N] bool."""

    vectors: Tensor
    mask: Tensor


class Pooled(NamedTuple):
    """vectors [B, M, D] and mask [B, M] of pooled documents, and the vector [B, N] that each token became, or -1."""

    vectors: Tensor
    mask: Tensor
    labels: Tensor


def unit(vectors: Tensor) -> Tensor:
    """vectors [..., D] at length 1 in their own dtype; zero vectors stay zero."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return F.normalize(wide, dim=-1).to(vectors.dtype)


def ragged(documents: list[Tensor]) -> Ragged:
    """Documents [n_i, D] as one padded batch."""
    mask = pad_sequence(
        [torch.ones(len(document), dtype=torch.bool, device=document.device) for document in documents],
        batch_first=True,
    )
    return Ragged(pad_sequence(documents, batch_first=True), mask)


def load_pixels(source: ImageSet, subject: Subject, numbers: list[int]) -> Tensor:
    """Pixels [M, C, S, S] in 0..1 of the images in `numbers`.

    Raises:
        DataError: one of them can't be read.
    """
    chunks = [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]
    loaded = list(batches(source, subject.transform, chunks, workers=0))
    corrupt = [path for batch in loaded for path in batch.corrupt]
    if corrupt:
        raise DataError(f"{len(corrupt)} of the {len(numbers)} images cannot be read; the first is {corrupt[0]}")
    cfg = subject.model.cfg
    return torch.cat([batch.images for batch in loaded]) * cfg.std + cfg.mean


def other_view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels [M, C, S, S] shifted by up to SHIFT pixels, with another contrast and, where there is light, noise."""
    side = pixels.shape[-1]
    wide = F.pad(pixels, [SHIFT] * 4)
    corners = torch.randint(2 * SHIFT + 1, (len(pixels), 2), generator=generator).tolist()
    moved = torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(wide, corners, strict=True)])
    contrast = 1 + CONTRAST * (2 * torch.rand(len(pixels), 1, 1, 1, generator=generator) - 1)
    noise = NOISE * torch.randn(moved.shape, generator=generator)
    return (moved * contrast + noise * (moved > 0)).clamp(0, 1)


@torch.inference_mode()
def embed(model: DeiT, pixels: Tensor, device: torch.device) -> Ragged:
    """Unit vectors [M, 1 + P, D] of the class token and the patches; background patches are masked."""
    cfg = model.cfg
    shown = F.max_pool2d(pixels.amax(1, keepdim=True), cfg.patch_size).flatten(1) > BACKGROUND
    mask = torch.cat([torch.ones(len(pixels), 1, dtype=torch.bool), shown], 1).to(device)
    inputs = ((pixels - cfg.mean) / cfg.std).split(BATCH)
    vectors = unit(torch.cat([model.forward_features(chunk.to(device)) for chunk in inputs]))
    return Ragged(vectors.masked_fill(~mask[..., None], 0), mask)


def join(images: Ragged, per_document: int) -> Ragged:
    """Documents of `per_document` images each, in order: the first image's class token, then the patches of all."""
    vectors, mask = images
    b, n, d = len(mask) // per_document, mask.shape[1], vectors.shape[2]
    first = torch.arange(len(mask), device=mask.device) % per_document == 0
    mask = torch.cat([mask[:, :1] & first[:, None], mask[:, 1:]], 1)
    return pack(Ragged(vectors.reshape(b, per_document * n, d), mask.reshape(b, per_document * n)))


def pack(documents: Ragged) -> Ragged:
    """The same documents with their padding at the end, as long as the longest."""
    vectors, mask = documents
    longest = int(mask.sum(1).max())
    order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return Ragged(vectors.gather(1, order[..., None].expand(-1, -1, vectors.shape[2])), mask.gather(1, order))


def pick(views: Ragged) -> Ragged:
    """Queries: QUERY_TOKENS of each view's patch tokens at even distances, all where there are no more."""
    vectors, mask = pack(Ragged(views.vectors[:, 1:], views.mask[:, 1:]))
    n = mask.sum(1, keepdim=True)
    slots = torch.arange(QUERY_TOKENS, device=mask.device)
    index = torch.where(n > QUERY_TOKENS, slots * n // QUERY_TOKENS, slots).clamp(max=mask.shape[1] - 1)
    mask = (slots < n) & mask.gather(1, index)
    return Ragged(vectors.gather(1, index[..., None].expand(-1, -1, vectors.shape[2])), mask)
