"""Padded batches whose padding is rows of zeros, taken apart and put together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SIDES = ("left", "right")


def unpad(embeddings: Tensor, side: str) -> list[Tensor]:
    """The documents of a padded batch [B, N, D]: what lies before, or behind, the rows of zeros at its side.

    Raises:
        ValueError: no such side.
    """
    if side not in SIDES:
        raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
    n = embeddings.shape[1]
    if n == 0:
        return list(embeddings)
    # A row's distance from the other side, counted from 1.
    reach = torch.arange(1, n + 1, device=embeddings.device)
    reach = reach if side == "right" else reach.flip(0)
    lengths = ((embeddings != 0).any(-1) * reach).amax(1).tolist()
    pairs = zip(embeddings, lengths, strict=True)
    return [rows[:length] if side == "right" else rows[n - length :] for rows, length in pairs]


def pad(documents: list[Tensor], side: str) -> Tensor:
    """Documents [n_i, D] as a batch [B, N, D] with rows of zeros at one side."""
    return pad_sequence(documents, batch_first=True, padding_side=side)
