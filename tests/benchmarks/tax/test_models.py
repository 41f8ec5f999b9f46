"""The pooling tax: the sliced model, the images, and the gate."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import tpkernels
from benchmarks.tax import cases as tax_cases
from benchmarks.tax import gate as tax_gate
from benchmarks.tax import models as tax_models
from benchmarks.tax.cases import BASE, SLICING, Schedule
from benchmarks.tax.models import NANO, DeiT, Sliced, Variant
from tests.support.tax import CPU, PROBLEM, TOKENS, Changed


def test_the_sliced_model_cuts_between_attention_and_mlp(model: DeiT, images: Tensor) -> None:
    left = (65, 33, 33, 17)
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(3, -1, -1), x], 1) + model.pos_embed
    for block, count in zip(model.blocks, left, strict=True):
        x = x + block.attn(block.norm1(x))
        x = x[:, :count]
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(Sliced(model, left)(images), model.head(model.norm(x)[:, 0]))
    assert torch.equal(Sliced(model, (65,) * 4)(images), model(images))


@pytest.mark.parametrize("schedule", tax_cases.SCHEDULES.values(), ids=lambda schedule: schedule.name)
def test_every_variant_has_the_counts_of_the_sliced_one(schedule: Schedule) -> None:
    model = tax_models.model_of("deit-nano", CPU, "float32")
    problem = dataclasses.replace(PROBLEM, schedule=schedule)
    images = tax_models.images_for(model, problem.model, problem.batch)
    base, sliced, *pooled = tax_models.variants(model, problem, tax_cases.METHODS)
    assert [one.name for one in (base, sliced)] == [BASE, SLICING] and len(pooled) == len(tax_cases.METHODS)
    assert base.tokens == (65,) * 12
    if schedule.name == "three":
        assert sliced.tokens == TOKENS
    for one in (base, sliced, *pooled):
        logits, wrong = tax_gate.first_call(one, images)
        assert wrong is None, one.name
        assert logits.shape == (2, NANO.num_classes)
        if one in pooled:
            assert one.tokens == sliced.tokens
            assert [1 + count for count in tpkernels.schedule_of(one.module)] == list(sliced.tokens)
    # The weights are there once, and the base model is not patched.
    assert {p.data_ptr() for p in pooled[0].module.parameters()} == {p.data_ptr() for p in model.parameters()}
    with pytest.raises(ValueError, match="must be patched"):
        tpkernels.schedule_of(model)


@pytest.mark.parametrize("name", tax_models.WIDTHS)
def test_shapes_are_those_of_deit(name: str) -> None:
    config = tax_models._config(*tax_models.WIDTHS[name])
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in DeiT(config).parameters())
    # Millions of parameters in table 5 of the paper on DeiT (arXiv 2012.12877).
    assert round(parameters / 1e6) == {"deit-ti": 6, "deit-s": 22, "deit-b": 87}[name]
    assert (config.grid_size, config.embed_dim // config.num_heads) == (14, 64)


def test_the_arithmetic_is_timms(timm: Any, model: DeiT, images: Tensor) -> None:
    other = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=10
    ).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images), model(images))
    pooled, twin = (
        tpkernels.patch(other, 0.7, layers=[1, 2]),
        tpkernels.patch(tax_models.twin(model), 0.7, layers=[1, 2]),
    )
    torch.testing.assert_close(pooled(images), twin(images))


def test_images_are_alike_where_they_are_near() -> None:
    state = torch.get_rng_state()
    found = tax_models.fields(16, 3, 64)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, tax_models.fields(16, 3, 64))
    assert not torch.equal(found, tax_models.fields(16, 3, 64, seed=1))
    torch.testing.assert_close(found.std((1, 2, 3)), torch.ones(16))
    near = (found[..., :-2] * found[..., 2:]).mean()
    far = (found[..., :-32] * found[..., 32:]).mean()
    assert near > 0.6 and near > far + 0.3


def test_models_do_not_touch_the_random_state() -> None:
    tax_models.model_of.cache_clear()
    state = torch.get_rng_state()
    first = tax_models.model_of("deit-nano", CPU, "float32")
    assert torch.equal(torch.get_rng_state(), state)
    tax_models.model_of.cache_clear()
    again = tax_models.model_of("deit-nano", CPU, "float32")
    assert first is not again
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_the_trained_model_and_its_images() -> None:
    pytest.importorskip("safetensors")
    model = tax_models.model_of("deit-fashion", CPU, "float32")
    images = tax_models.images_for(model, "deit-fashion", 3)
    assert images.shape == (3, 1, 28, 28) and len({float(image.sum()) for image in images}) == 3
    assert float(model(images).softmax(1).max(1).values.min()) > 0.3
    more = tax_models.images_for(model, "deit-fashion", 2001)
    assert torch.equal(more[0], more[2000]) and not torch.equal(more[0], more[1])


def test_the_gate_sees_wrong_counts_and_numbers(model: DeiT, images: Tensor) -> None:
    left = (65, 33, 33, 17)
    good = Variant("good", Sliced(model, left), model.blocks, left)
    assert tax_gate.first_call(good, images)[1] is None
    short = dataclasses.replace(good, module=Sliced(model, (65, 33, 33, 16)))
    assert (
        "tokens at the MLPs: expected [65, 33, 33, 17], got [65, 33, 33, 16]" in tax_gate.first_call(short, images)[1]
    )
    skipped = dataclasses.replace(good, module=Sliced(model, (65, 65, 65, 17)))
    assert "got [65, 65, 65, 17]" in tax_gate.first_call(skipped, images)[1]
    lost = dataclasses.replace(good, module=Changed(good.module, lambda y: y.masked_fill(y == y.max(), torch.nan)))
    assert "got 1 of 30 that are not" in tax_gate.first_call(lost, images)[1]
    assert not model.blocks[0].mlp._forward_pre_hooks


def test_the_gate_compares_logits() -> None:
    expected = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert tax_gate.differs(expected * (1 + 1e-4), expected) is None
    assert "got 0.01" in tax_gate.differs(expected * 1.01, expected)
    assert tax_gate.differs((expected * 1.01).bfloat16(), expected.bfloat16()) is None
    assert "finite" in tax_gate.differs(expected / 0, expected)


def test_pooling_to_every_token_must_change_nothing(
    model: DeiT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tax_gate.changes_nothing(model, images) is None
    monkeypatch.setattr(tax_gate.tpkernels, "patch", lambda model, keep: Changed(model, lambda y: y + 1e-3))
    assert "keep=1.0: expected the base model's logits" in tax_gate.changes_nothing(model, images)


def test_rounds_of_ward(model: DeiT, images: Tensor) -> None:
    schedule = Schedule("three", 0.5, (0, 2))
    with tax_gate.inputs_of([model.blocks[0].norm2, model.blocks[2].norm2]) as seen:
        model(images)
    taken = torch.stack([tpkernels.ward(x[:, 1:], 32).n_iter for x in seen]).double()
    assert tax_gate.ward_rounds(model, images, schedule) == pytest.approx(float(taken.mean()))
    assert taken.min() > 1
