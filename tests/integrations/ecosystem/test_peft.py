"""Adapters of PEFT in a model that is patched before or after: it pools, only adapters train, merging is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ecosystem import CLIP, FAMILIES, VIT, Case, ask, assert_plain, assert_pools, logits
from tpkernels import patch, schedule_of, summary, unpatch

pytestmark = pytest.mark.slow

ORDERS = ("model", "base model", "adapters last")
TARGETS = {"timm": ["qkv"], "torchvision": ["mlp.0", "mlp.3"], VIT: ["q_proj", "v_proj"], CLIP: ["q_proj", "v_proj"]}
KINDS = ("lora", "lora and head", "dora", "ia3", "oft")


def adapters(peft: Any, case: Case, kind: str) -> Any:
    """A configuration whose adapters do something from the start."""
    targets: dict[str, Any] = {"target_modules": TARGETS[case.name]}
    if kind == "ia3":
        parts = TARGETS[case.name] if case.name == "torchvision" else []
        return peft.IA3Config(**targets, feedforward_modules=parts, init_ia3_weights=False)
    if kind == "oft":
        return peft.OFTConfig(**targets, oft_block_size=4, init_weights=False)
    head = [case.head] if kind == "lora and head" else None
    return peft.LoraConfig(r=2, **targets, use_dora=kind == "dora", modules_to_save=head, init_lora_weights=False)


def adapted(peft: Any, case: Case, kind: str, order: str) -> Any:
    """A model with adapters, patched as a PeftModel, by its base model, or before it got them."""
    model = case.make()
    if order == "adapters last":
        patch(model, 0.5)
    torch.manual_seed(3)
    model = peft.get_peft_model(model, adapters(peft, case, kind)).eval()
    if order != "adapters last":
        patch(model if order == "model" else model.get_base_model(), 0.5)
    return model


def answers(peft: Any, case: Case, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits with adapters, unpooled and pooled: that of a plain model into which they were merged."""
    model = case.make()
    torch.manual_seed(3)
    model = peft.get_peft_model(model, adapters(peft, case, kind)).eval()
    plain, merged = ask(model), model.merge_and_unload()
    assert (plain - case.plain).abs().max() > 1e-3
    return plain, ask(patch(merged, 0.5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_patched_before_and_after(peft: Any, case: Case, kind: str) -> None:
    plain, pooled = answers(peft, case, kind)
    for order in ORDERS:
        model = adapted(peft, case, kind, order)
        assert_pools(model, case, expected=pooled)
        assert schedule_of(model) == [32, 16, 8, 4] and "4 " in str(summary(model))
        assert_plain(unpatch(model), case, expected=plain)
        assert_pools(patch(model, 0.5), case, expected=pooled)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_only_adapters_train(peft: Any, case: Case, order: str) -> None:
    model = adapted(peft, case, "lora and head", order).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    descent = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.1)
    logits(model).square().mean().backward()
    descent.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name or "modules_to_save" in name}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", FAMILIES, indirect=True)
def test_merged_and_taken_out(peft: Any, case: Case, order: str) -> None:
    plain, pooled = answers(peft, case, "lora")
    merged = adapted(peft, case, "lora", order).merge_and_unload()
    assert_pools(merged, case, expected=pooled)
    assert_plain(unpatch(merged), case, expected=plain, exact=False)
    model = adapted(peft, case, "lora", order)
    with model.disable_adapter():
        assert_pools(model, case)
    base = model.unload()
    assert_pools(base, case)
    assert_plain(unpatch(base), case)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", ["timm", VIT], indirect=True)
def test_stored_and_loaded(peft: Any, tmp_path: Path, case: Case, order: str) -> None:
    model = adapted(peft, case, "lora and head", order)
    model.save_pretrained(str(tmp_path))
    # Stored pooled, loaded unpooled, and the other way around.
    loaded = peft.PeftModel.from_pretrained(case.make(), str(tmp_path)).eval()
    assert_plain(loaded, case, expected=ask(unpatch(model)))
    assert_pools(patch(loaded, 0.5), case, expected=ask(patch(model, 0.5)))


@pytest.mark.parametrize("case", ["torchvision"], indirect=True)
def test_attention_that_is_replaced_is_refused(peft: Any, case: Case) -> None:
    """Its class computes what pooling computes from its weights, and adapters within it would be passed by."""
    options = peft.LoraConfig(r=2, target_modules=["self_attention"], init_lora_weights=False)
    torch.manual_seed(3)
    model = peft.get_peft_model(patch(case.make(), 0.5), options).eval()
    with pytest.raises(RuntimeError, match=r"got .*lora.*MultiheadAttention in place of a MultiheadAttention"):
        ask(model)
    plain = ask(unpatch(model))
    assert (plain - case.plain).abs().max() > 1e-3
    with pytest.raises(TypeError, match=r"its self_attention is no nn\.MultiheadAttention"):
        patch(model, 0.5)
    merged = model.merge_and_unload()
    assert_plain(merged, case, expected=plain, exact=False)
    patch(merged, 0.5)
    assert_pools(merged, case, expected=ask(merged))


@pytest.mark.parametrize("case", ["torchvision"], indirect=True)
def test_adapters_that_torch_passes_by(peft: Any, case: Case) -> None:
    # torch's MultiheadAttention reads the weights of its projection, not what an adapter adds.
    config = peft.LoraConfig(target_modules=["out_proj"], init_lora_weights=False)
    model = peft.get_peft_model(patch(case.make(), 0.5), config)
    assert_pools(model, case)
    assert_plain(unpatch(model), case)


@pytest.mark.parametrize("case", [VIT], indirect=True)
def test_a_whole_block_that_is_saved(peft: Any, case: Case) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["layers.3"])
    model = peft.get_peft_model(patch(case.make(), 0.5), config)
    assert_pools(model, case)
    assert_plain(unpatch(model), case)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("case", FAMILIES[2:], indirect=True)
def test_adapters_by_transformers_own_methods(peft: Any, case: Case, order: str) -> None:
    model: Any = case.make()
    if order == "after":
        patch(model, 0.5)
    torch.manual_seed(3)
    model.add_adapter(adapters(peft, case, "lora"))
    model.eval()
    if order == "before":
        patch(model, 0.5)
    plain, pooled = answers(peft, case, "lora")
    assert_pools(model, case, expected=pooled)
    model.disable_adapters()
    assert_pools(model, case)
    model.enable_adapters()
    assert_plain(unpatch(model), case, expected=plain)
