"""Softmax attention that also tells what each key received, and its gradient."""
