"""The operations as vectorised torch, for every device: what other rooms are compared with, and ONNX traces."""
