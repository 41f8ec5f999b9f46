"""The parts of `examples/deit_train.py`."""
