"""Which layers' tokens a model of transformers collects beside the last one's."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..schedule.shapes import block_in, tower_layers
from .block import original_class
from .containers import PooledList
from .plan import Unsupported

# Attributes of models that read the tokens between blocks, and of their configurations.
_READS_BETWEEN = ("out_indices", "extract_layers")
_CONFIG_READS_BETWEEN = ("backbone_out_indices",)


def last_read(tower: nn.Module, model: nn.Module) -> int | None:
    """The block whose tokens a model around the tower reads; None where no model names one.

    LLaVA and its like read the hidden states at `vision_feature_layer`: 0 are the embeddings', then come the blocks'.

    Raises:
        Unsupported: several blocks are read, or one that pooling cannot restore.
    """
    depth = len(tower_layers(tower))
    for module in around(model, tower):
        place = getattr(module.config, "vision_feature_layer", None)
        if place is None:
            continue
        reads = f"its {type(module).__name__} reads the tokens of"
        if not isinstance(place, int):
            raise Unsupported(
                f"{reads} several blocks (`vision_feature_layer` {place}), which would be of different numbers"
            )
        if not any(records(one, tower) for one in around(model, tower)):
            raise Unsupported(
                f"{reads} one block (`vision_feature_layer` {place}) from a list that is filled block by block, "
                "which passes pooling by; newer releases of transformers fill it by hooks"
            )
        block = place - 1 if place >= 0 else depth + place
        if not 0 <= block < depth:
            raise Unsupported(f"{reads} no block (`vision_feature_layer` {place}): pooling would not reach it")
        return block
    return None


def check_outputs(module: Any) -> None:
    """Raises Unsupported where a model's own forward collects the tokens of several blocks."""
    for holder, names in ((module, _READS_BETWEEN), (module.config, _CONFIG_READS_BETWEEN)):
        for name in names:
            if getattr(holder, name, None) is not None:
                raise Unsupported(
                    f"its {type(module).__name__} reads the tokens of several blocks (`{name}`), which would be of "
                    "different numbers"
                )


def around(model: nn.Module, tower: nn.Module) -> list[Any]:
    """The models with a configuration on the way from `model` to the tower, both included."""
    return [one for one in model.modules() if "config" in one.__dict__ and any(part is tower for part in one.modules())]


def records(module: Any, tower: nn.Module) -> bool:
    """Whether a model collects outputs of the tower's layers by hooks on their class, as releases from 4.56 on do."""
    recorded = getattr(module, "_can_record_outputs", None) or {}
    found = recorded.get("hidden_states")
    block = original_class(block_in(next(tower_layers(tower).children())))
    for one in found if isinstance(found, (list, tuple)) else (found,):
        kind = getattr(one, "target_class", one)
        if isinstance(kind, type) and issubclass(block, kind):
            return True
    return False


def restored(module: nn.Module, asked: Any) -> bool:
    """Whether the hidden states that are asked for, all (True) or by their places, are of full length where read."""
    blocks = next((part for part in module.modules() if isinstance(part, PooledList)), None)
    if blocks is None or blocks.plan.last_read is None:
        return False
    if asked is True:
        return True
    # 0 are the embeddings', -1 the last block's.
    depth = len(blocks)
    whole = {0, *range(blocks.plan.last_read + 1, depth + 1)}
    places = [asked] if isinstance(asked, int) else asked
    return all((place + depth + 1 if place < 0 else place) in whole for place in places)
