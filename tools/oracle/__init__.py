"""What `tpkernels.patch` makes of every model of timm, torchvision and transformers, beside an oracle.

The oracle runs the unpatched model, operation by operation, and pools in it by itself (`pooled.py`). It imports nothing
of the package, and knows no names of a model's parts: what is a block, a prefix token or the place between attention
and MLP is read from what the model computes.
"""
