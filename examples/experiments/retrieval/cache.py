"""Vectors of many texts, which take minutes: kept in one file that grows as they are made."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch
from common.files import FileError, write_atomically
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from .encoder import Encoder

# A kill loses no more than this of the work.
SECONDS_BETWEEN_WRITES = 30


def embed_all(encoder: Encoder, texts: list[list[int]], folder: Path) -> list[Tensor]:
    """Vectors [n_i, D] float16 of texts, given as token ids; what a file in `folder` holds of them is not made again.

    Raises:
        FileError: the file is damaged.
        OSError: it cannot be read or written.
    """
    path = folder / f"vectors-{fingerprint(encoder, texts)}.safetensors"
    made = read(path, texts)
    written = time.monotonic()
    with tqdm(total=len(texts), initial=len(made), desc="embedding", unit="text", mininterval=0.5) as bar:
        for ids in texts[len(made) :]:
            made.append(encoder.embed(ids).half())
            bar.update()
            if len(made) == len(texts) or time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                write(path, made)
                written = time.monotonic()
    return made


def fingerprint(encoder: Encoder, texts: list[list[int]]) -> str:
    """A name for these texts' vectors by this model."""
    return hashlib.sha256(json.dumps([encoder.digest, texts]).encode()).hexdigest()[:12]


def write(path: Path, vectors: list[Tensor]) -> None:
    content = save({"vectors": torch.cat(vectors)}, {"texts": str(len(vectors))})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read(path: Path, texts: list[list[int]]) -> list[Tensor]:
    """The vectors of the first texts, as far as the file holds them; none where there is no file."""
    if not path.exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            lengths = [len(ids) for ids in texts[: int(file.metadata()["texts"])]]
            vectors = file.get_tensor("vectors")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is damaged ({error}); delete it to make it again") from None
    if len(vectors) != sum(lengths):
        raise FileError(f"{path} is damaged ({len(vectors)} vectors of {sum(lengths)}); delete it to make it again")
    return list(vectors.split(lengths))
