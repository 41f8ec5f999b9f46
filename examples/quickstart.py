"""Pools a vision transformer and prints what that saves: `python examples/quickstart.py [name of a timm model]`.

Weights are random, and nothing is downloaded: tokens and MACs do not depend on them.
"""

import sys

import torch
from deit.model import DeiT, DeiTConfig

import tpkernels

if sys.argv[1:]:
    import timm

    model = timm.create_model(sys.argv[1]).eval()
else:
    model = DeiT(DeiTConfig(img_size=224, patch_size=16, in_chans=3, embed_dim=192)).eval()

tpkernels.patch(model, keep=0.7, layers=[3, 6, 9])
with torch.inference_mode():
    model(torch.randn(1, 3, 224, 224))

saved = tpkernels.summary(model)
print(saved)
before, after = saved.macs.per_layer[0].tokens_in, saved.schedule[-1]
print(f"{before} tokens end as {after}: {1 - saved.macs.ratio:.1%} of the MACs saved")
