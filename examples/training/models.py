"""The model that is trained: the small DeiT or timm's, from weights or not, pooled or not, and its teacher."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from deit.checkpoint import CheckpointError, read_weights
from deit.methods import find_methods
from deit.model import DeiT, DeiTConfig, resize_patches
from deit.rows import pool_like, tokens_per_block
from deit.strided import reduce_by_convolution
from deit.subjects import RgbTransform, SmallTransform, load_timm
from torch import nn

import tpkernels

from .sources import FolderSource, IdxSource, Source, is_idx


def build_model(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The unpooled model, and how a test image becomes its input.

    Raises:
        CheckpointError: weights that are missing, damaged, or do not fit.
    """
    torch.manual_seed(args.seed)
    if args.model:
        subject = load_timm(args.model, args.init)
        return subject.model, subject.transform
    given = {
        name: value
        for name, value in (("patch_size", args.patch), ("embed_dim", args.dim), ("num_heads", args.heads))
        if value is not None
    }
    if args.init is None:
        model = DeiT(DeiTConfig(**{"patch_size": 4, **given}))
        return model, SmallTransform(model.cfg)
    config, state, _ = read_weights(args.init)
    wanted = DeiTConfig(**{**config.to_dict(), **given})
    if config.patch_size != wanted.patch_size:
        state = resize_patches(state, config, wanted)
    model = DeiT(wanted)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        what = f"--dim {wanted.embed_dim} --heads {wanted.num_heads}"
        raise CheckpointError(f"{args.init} does not fit {what}: {' '.join(str(error).split())[:300]}") from None
    return model, SmallTransform(wanted)


def open_source(args: argparse.Namespace, model: nn.Module, testing: Any) -> Source:
    """The images of --data, made ready for the model.

    Raises:
        DataError: files that are missing or damaged.
    """
    common = (args.batch_size, args.seed, args.limit, args.test_limit)
    if isinstance(model, DeiT) and is_idx(args.data):
        return IdxSource(args.data, model.cfg, *common)
    training = testing if isinstance(model, DeiT) else _timm_training(model)
    return FolderSource(args.data, training, testing, *common, args.workers)


def _timm_training(model: nn.Module) -> RgbTransform:
    """timm's own augmentation: crops, flips, RandAugment and random erasing as in DeiT's recipe."""
    import timm.data

    config = timm.data.resolve_model_data_config(model)
    known = {name: config[name] for name in ("input_size", "interpolation", "mean", "std")}
    return RgbTransform(
        timm.data.create_transform(**known, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)
    )


def pool(args: argparse.Namespace, model: nn.Module) -> tuple[str, list[int] | None]:
    """Pools the model as the arguments say, in place.

    Returns:
        what was done, in words ("" for nothing), and the patch tokens after each block where tokens are pooled.

    Raises:
        ValueError, TypeError: a schedule that does not fit the model; a method that is not known.
    """
    if args.strided is not None:
        if not isinstance(model, DeiT):
            raise ValueError("--strided is for the small DeiT; got --model")
        reduce_by_convolution(model, args.strided)
        return f"strided convolution in block {args.strided}", None
    if args.method is None:
        return "", None
    method = find_methods([args.method])[0]
    if args.schedule is not None:
        tpkernels.patch(model, str(args.schedule), **method.arguments)
        tokens = list(tpkernels.summary(model).schedule)
    else:
        tokens = tokens_per_block(model, args.keep, args.budget, args.layers)
        pool_like(model, method, tokens)
    return f"{method.label}, tokens {' '.join(map(str, tokens))}", tokens


def teacher_of(model: nn.Module) -> nn.Module:
    """A copy that stays as it is, in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)
