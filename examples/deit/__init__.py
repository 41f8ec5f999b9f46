"""What the DeiT examples share: the model, the images, the checkpoint files."""
