"""sentence-transformers' `HierarchicalTokenPooling`, with one clustering call for all documents of a batch."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from . import stand_ins
from .batch import unit
from .optional import find
from .padding import SIDES, pad, unpad
from .pool import pool_embeddings

# The distance of sentence-transformers, which its configurations do not name.
_THEIRS = "clipped"
_Base: Any
(_Base,) = find("sentence_transformers.multi_vector_encoder.modules", "BaseTokenPooling") or (
    stand_ins.BaseTokenPooling,
)


class HierarchicalTokenPooling(_Base):
    """Ward's clusters of each document's tokens, as sentence-transformers' class of this name finds them.

    It derives from sentence-transformers' `BaseTokenPooling` where that can be imported: a module at the end of a
    `MultiVectorEncoder`, or what its `encode(token_pooling=...)` takes. A batch is one clustering call, on its own
    device, of documents of at most 4,096 tokens, and gradients flow through the means. Either class loads what the
    other saved, unless it names a distance; a whole model that holds this module is loaded with
    `trust_remote_code=True`, as with any module from elsewhere.

    Args:
        pool_factor: tokens a vector, at least 1, which pools nothing; fractional ones are taken.
        num_protected_tokens: so many first tokens of each document are kept as they are, in front.
        normalize_embeddings: all vectors that come out have length 1, protected ones too. A saved configuration that
            does not say is of a release that did not normalise, and loads with False.
        tasks: names of tasks, or one, whose inputs are pooled; None for documents alone.
        distance: "clipped", `1 - x . y` within [0, 2], as there, or what else `pool_embeddings` takes.
        backend: "auto", "torch" or "triton"; it is not saved.

    Raises:
        ValueError: a factor below 1, or a negative number of tokens.
    """

    config_keys: ClassVar[list[str]] = [
        "pool_factor",
        "num_protected_tokens",
        "normalize_embeddings",
        "tasks",
        "distance",
    ]

    def __init__(
        self,
        pool_factor: float = 1.0,
        *,
        num_protected_tokens: int = 1,
        normalize_embeddings: bool = True,
        tasks: str | list[str] | None = None,
        distance: str = _THEIRS,
        backend: str = "auto",
    ) -> None:
        super().__init__(tasks=tasks)
        if not pool_factor >= 1:
            raise ValueError(f"pool_factor must be at least 1, got {pool_factor}")
        if num_protected_tokens < 0:
            raise ValueError(f"num_protected_tokens must be at least 0, got {num_protected_tokens}")
        self.pool_factor = pool_factor
        self.num_protected_tokens = num_protected_tokens
        self.normalize_embeddings = normalize_embeddings
        self.distance = distance
        self.backend = backend

    def get_config_dict(self) -> dict[str, Any]:
        """What is saved: the arguments of sentence-transformers' class, and the distance where it is another."""
        config = super().get_config_dict()
        if config["distance"] == _THEIRS:
            del config["distance"]
        return config

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The saved arguments; without a word on `normalize_embeddings`, it is False."""
        return {"normalize_embeddings": False, **super().load_config(*args, **kwargs)}

    def _pooled(self, documents: Any) -> Any:
        """Documents in any form that `pool_embeddings` takes, in one call."""
        return pool_embeddings(
            documents,
            self.pool_factor,
            protected=self.num_protected_tokens,
            distance=self.distance,
            normalize="all" if self.normalize_embeddings else False,
            preset="sentence-transformers",
            backend=self.backend,
        )

    def forward(self, features: dict[str, Tensor], task: str | None = None) -> dict[str, Tensor]:
        """Pools `token_embeddings` [B, N, D] where `attention_mask` [B, N] is not 0, in place of both.

        Args:
            features: of a pipeline; others than these two are left alone.
            task: what the inputs are encoded for; None counts as "document".
        """
        if not self.applies_to(task) or len(features["token_embeddings"]) == 0:
            return features
        embeddings = features["token_embeddings"]
        if self.pool_factor > 1:
            documents = embeddings, features["attention_mask"].bool()
            features["token_embeddings"], features["attention_mask"] = self._pooled(documents)
        elif self.normalize_embeddings:
            features["token_embeddings"] = unit(embeddings).to(embeddings.dtype)
        return features

    def pool(
        self,
        embeddings: list[Tensor] | Tensor,
        *,
        task: str | None = None,
        attention_mask: Tensor | None = None,
        padding_side: str = "right",
    ) -> list[Tensor] | Tensor:
        """Pools documents that are encoded already.

        Args:
            embeddings: a list of [n_i, D], or [B, N, D].
            task: what they were encoded for; None counts as "document".
            attention_mask: [B, N] bool, tokens of [B, N, D]; without it, rows of zeros at the padding's side are none.
            padding_side: "left" or "right", of an input [B, N, D] without a mask, and of its output.

        Returns:
            A list of [k_i, D], or [B, K, D] padded with zeros; the input for a task that is not pooled.

        Raises:
            ValueError: neither a list of 2D tensors nor a 3D tensor, or no such side.
        """
        if not self.applies_to(task):
            return embeddings
        if isinstance(embeddings, list):
            if embeddings and embeddings[0].dim() != 2:
                raise ValueError(f"embeddings must be 2D tensors in a list, got shape {tuple(embeddings[0].shape)}")
            return self._pooled(embeddings) if embeddings else []
        if not isinstance(embeddings, Tensor) or embeddings.dim() != 3:
            got = f"shape {tuple(embeddings.shape)}" if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise ValueError(f"embeddings must be a list of 2D tensors or a 3D tensor, got {got}")
        if padding_side not in SIDES:
            raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
        if len(embeddings) == 0:
            return embeddings.new_zeros(0, 0, embeddings.shape[-1])
        if attention_mask is None:
            documents = unpad(embeddings, padding_side)
        else:
            mask = attention_mask.bool()
            documents = list(embeddings[mask].split(mask.sum(1).tolist()))
        return pad(self._pooled(documents), padding_side)

    def pool_one(self, embedding: Tensor, **kwargs: Any) -> Tensor:
        """Pools one document [n, D]."""
        return self._pooled([embedding])[0]
