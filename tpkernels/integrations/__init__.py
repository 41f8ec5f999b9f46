"""Token Pooling in models that exist: found by their structure, changed reversibly."""

from .patch import patch, schedule_of, unpatch

__all__ = ["patch", "schedule_of", "unpatch"]
