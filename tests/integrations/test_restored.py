"""What the tokens of a patched model are worth: restored for the head, merged without loss, left alone where few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.deit import make_model
from tests.support.models import make_timm, make_torchvision, make_transformers, mlp_tokens
from tpkernels import TokenPool, patch, summary, trace


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_an_average_is_weighted_by_sizes(timm: Any, prefix: int) -> None:
    options = {"class_token": prefix > 0, "reg_tokens": max(prefix - 1, 0), "global_pool": "avg"}
    model, images = make_timm(timm, **options).double(), torch.randn(3, 3, 32, 32).double()
    plain = model(images)
    logits = patch(model, 0.5, layers=[0, 2])(images)
    assert summary(model).restore and not torch.allclose(logits, plain, rtol=1e-3)
    patch(model, 0.5, layers=[0, 2], restore=False)
    with trace(model) as seen:
        tokens = model.forward_features(images)[:, prefix:]
    share = seen.sizes[-1][:, prefix:, None].double()
    mean = (share * tokens).sum(1) / 64
    assert share.sum(1).eq(64).all() and share.max() > 1
    torch.testing.assert_close(model.head(model.fc_norm(mean)), logits)
    assert not torch.allclose(model(images), logits)


def test_an_attention_head_sees_every_place(timm: Any) -> None:
    model = make_timm(timm, class_token=False, global_pool="map").double()
    images = torch.randn(3, 3, 32, 32).double()
    pooled = patch(model, 0.5, layers=[0, 2]).forward_features(images)
    logits = model.forward_head(pooled)
    patch(model, 0.5, layers=[0, 2], restore=False)
    with trace(model) as seen:
        tokens = model.forward_features(images)
    head = model.attn_pool
    q = head.q_norm(head.q(head.latent.expand(3, -1, -1)).unflatten(2, (head.num_heads, -1)).transpose(1, 2))
    k, v = head.kv(tokens).unflatten(2, (2, head.num_heads, -1)).permute(2, 0, 3, 1, 4)
    # Every token counts as often as its size.
    bias = seen.sizes[-1].log().double()[:, None, None]
    out = F.scaled_dot_product_attention(q, head.k_norm(k), v, attn_mask=bias)
    out = head.proj(out.transpose(1, 2).flatten(2))
    out = out + head.mlp(head.norm(out))
    torch.testing.assert_close(model.head(model.fc_norm(out[:, 0])), logits)


def pave(patch_size: int, channels: int = 3) -> Tensor:
    """Images of 8 x 8 patches of 16 kinds, some rare and some frequent."""
    generator = torch.Generator().manual_seed(2)
    kinds = torch.randn(2, 16, channels, patch_size, patch_size, generator=generator)
    counts = torch.tensor([1] * 6 + [2] * 4 + [5] * 4 + [15] * 2)
    order = torch.arange(16).repeat_interleave(counts)
    order = torch.stack([order[torch.randperm(64, generator=generator)] for _ in range(2)])
    patches = torch.stack([kind[places] for kind, places in zip(kinds, order, strict=True)])
    grid = patches.unflatten(1, (8, 8)).permute(0, 3, 1, 4, 2, 5)
    return grid.flatten(4).flatten(2, 3).double()


def assert_lossless(model: nn.Module, ask: Any) -> None:
    """Merging equal tokens changes nothing, where attention and head count them as often as they were."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name or "pos_embed" in name:
                parameter.zero_()
        expected = ask(model)
        assert expected.std() > 0.01
        for position in ("attention", "block"):
            patch(model, [16, None, None, None], position=position)
            assert mlp_tokens(model, lambda: ask(model))[-1] < 22
            torch.testing.assert_close(ask(model), expected)
        # The test can tell: attention that counts every token once answers otherwise.
        assert not torch.allclose(ask(patch(model, [16, None, None, None], proportional=False)), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "map", "class_token": False},
        {"reg_tokens": 3, "qk_norm": True, "init_values": 0.5},
    ],
)
def test_equal_tokens_merge_without_loss_in_timm(timm: Any, options: dict[str, Any]) -> None:
    assert_lossless(make_timm(timm, **options).double(), lambda model: model(pave(4)))


def test_equal_tokens_merge_without_loss_in_torchvision(torchvision: Any) -> None:
    assert_lossless(make_torchvision(torchvision).double(), lambda model: model(pave(4)))


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2ForImageClassification", "SiglipVisionModel", "CLIPVisionModel"])
def test_equal_tokens_merge_without_loss_in_transformers(transformers: Any, name: str) -> None:
    model, _ = make_transformers(transformers, name)

    def ask(model: nn.Module) -> Tensor:
        out = model(pave(4))
        if "logits" in out:
            return out.logits
        return torch.cat([out.last_hidden_state.flatten(1), out.pooler_output.flatten(1)], 1)

    assert_lossless(model.double(), ask)


def test_fewer_tokens_than_the_minimum_pass() -> None:
    model, images = make_model(), torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    plain = [model(images[:batch]) for batch in (1, 2, 3)]
    patch(model, 0.5, layers=[0, 1], min_tokens=150)
    for batch in (1, 2):
        assert torch.equal(model(images[:batch]), plain[batch - 1])
    # 3 x 64 are enough, 3 x 32 are not.
    assert mlp_tokens(model, lambda: model(images)) == [33] * 4
    assert not torch.allclose(model(images), plain[2])
    patch(model, 0.5, layers=[0, 1], min_tokens=96)
    assert mlp_tokens(model, lambda: model(images)) == [33, 17, 17, 17]


@pytest.mark.parametrize("keep", [0.5, 7, 0.01, 1.0])
@pytest.mark.parametrize("prefix", [0, 2])
def test_output_len_is_the_length_of_the_output(keep: float, prefix: int) -> None:
    pool = TokenPool(keep, num_prefix_tokens=prefix, min_tokens=40)
    lengths = set()
    for batch in (1, 3):
        for n in range(prefix, 40, 3):
            out = pool(torch.randn(batch, n, 5))
            assert out.shape[1] == pool.output_len(n, batch)
            lengths.add(n - out.shape[1])
    assert (len(lengths) > 1) == (keep != 1.0)
