"""What ends a run in one line instead of a traceback."""


class Refusal(ValueError):
    """An argument, a file of results or a document that a command cannot work with; the message says which and why."""


class DeviceLost(RuntimeError):
    """A GPU that answers this process no more, as after an illegal access; the message says in whose hands."""
