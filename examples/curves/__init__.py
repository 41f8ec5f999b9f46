"""The parts of `examples/cost_accuracy.py`."""
