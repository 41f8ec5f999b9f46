"""The DeiT of the examples: the model, its checkpoint files, the ways to pool it, and its evaluation."""
