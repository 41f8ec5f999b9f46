"""The interfaces of other packages' base classes, for where those packages are not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files import replace
from .padding import pad, unpad

Members = dict[int, tuple[Tensor]]


@dataclass
class TokenPoolingOutput:
    """What colpali-engine's poolers return with `return_dict`.

    Attributes:
        pooled_embeddings: a list of [k_i, D], or [B, K, D] padded with zeros.
        cluster_id_to_indices: for each document, its tokens' indices by the number of their cluster, in tuples of one.
    """

    pooled_embeddings: list[Tensor] | Tensor
    cluster_id_to_indices: list[Members] | None = None


class BaseTokenPooler:
    """colpali-engine's base class of poolers: lists and padded batches in, the same out."""

    def _pool_embeddings_impl(
        self, embeddings: list[Tensor], *args: Any, **kwargs: Any
    ) -> tuple[list[Tensor], list[Members] | None]:
        raise NotImplementedError

    def pool_embeddings(
        self,
        embeddings: list[Tensor] | Tensor,
        return_dict: bool = False,
        padding: bool = False,
        padding_side: str = "left",
        num_workers: int | None = None,
        **pool_kwargs: Any,
    ) -> list[Tensor] | Tensor | TokenPoolingOutput:
        """Pools each document's tokens.

        Args:
            embeddings: a list of [n_i, D], or [B, N, D].
            return_dict: return the clusters' tokens, too.
            padding: whether rows of zeros at the padding's side of [B, N, D] are no tokens.
            padding_side: "left" or "right", of the input and of the output.
            num_workers: None or at least 1.
            pool_kwargs: the pooler's own, `pool_factor`.

        Returns:
            A list of [k_i, D], or [B, K, D] padded with zeros; both within a `TokenPoolingOutput` with `return_dict`,
            and for an empty list.

        Raises:
            ValueError: neither a list of 2D tensors nor a 3D tensor, or no such side.
        """
        if isinstance(embeddings, list) and not embeddings:
            return TokenPoolingOutput([], [])
        if isinstance(embeddings, Tensor) and embeddings.dim() == 3:
            documents = unpad(embeddings, padding_side) if padding else list(embeddings)
        elif isinstance(embeddings, list) and embeddings[0].dim() == 2:
            documents = embeddings
        else:
            raise ValueError(f"embeddings must be a list of 2D tensors or a 3D tensor, got {_kind(embeddings)}")
        pooled, members = self._pool_embeddings_impl(documents, num_workers=num_workers, **pool_kwargs)
        output = pooled if isinstance(embeddings, list) else pad(pooled, padding_side)
        return TokenPoolingOutput(output, members) if return_dict else output


def _kind(embeddings: Any) -> str:
    """What came instead of embeddings, for a message."""
    if isinstance(embeddings, list):
        return f"a list of {embeddings[0].dim()}D tensors"
    return f"a {embeddings.dim()}D tensor" if isinstance(embeddings, Tensor) else type(embeddings).__name__


class BaseTokenPooling(nn.Module):
    """sentence-transformers' base class of pooling modules: tasks that it applies to, and its configuration in a file.

    Args:
        tasks: names of tasks, or one; None for documents alone.
    """

    config_file_name = "config.json"
    config_keys = ["tasks"]  # noqa: RUF012
    forward_kwargs = {"task"}  # noqa: RUF012
    save_in_root = False

    def __init__(self, *, tasks: str | list[str] | None = None) -> None:
        super().__init__()
        self.tasks = [tasks] if isinstance(tasks, str) else ["document"] if tasks is None else list(tasks)

    def applies_to(self, task: str | None) -> bool:
        """Whether inputs of a task are pooled; no task counts as "document"."""
        return (task or "document") in self.tasks

    def get_config_dict(self) -> dict[str, Any]:
        """What `save` writes: the arguments of the constructor by their names."""
        return {key: getattr(self, key) for key in self.config_keys}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes the configuration into a folder that is there; there are no weights."""
        content = json.dumps(self.get_config_dict(), indent=4)
        replace(Path(output_path) / self.config_file_name, content.encode())

    @classmethod
    def load_config(
        cls, model_name_or_path: str, subfolder: str = "", config_filename: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The configuration that stands in a folder, or in a folder of it."""
        path = Path(model_name_or_path) / subfolder / (config_filename or cls.config_file_name)
        return json.loads(path.read_text(encoding="utf-8"))

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", init_defaults: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """The module whose configuration stands in a folder; what was not saved is taken from `init_defaults`."""
        return cls(**{**(init_defaults or {}), **cls.load_config(model_name_or_path, subfolder)})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_config_dict()})"
