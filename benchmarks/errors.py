"""What ends a run in one line instead of a traceback."""


class Refusal(ValueError):
    """An argument, a file of results or a document that a command cannot work with; the message says which and why."""
