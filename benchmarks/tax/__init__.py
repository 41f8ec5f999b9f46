"""The pooling tax: pooled models beside the same models whose tokens are cut by slicing."""
