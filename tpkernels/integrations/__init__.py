"""Token Pooling in existing models: found by their structure, changed reversibly."""

from .calibration import reconstruction_errors
from .inspect import Summary, schedule_of, summary, trace
from .patch import patch, unpatch
from .solve import solve_schedule
from .source_map import Trace

__all__ = [
    "Summary",
    "Trace",
    "patch",
    "reconstruction_errors",
    "schedule_of",
    "solve_schedule",
    "summary",
    "trace",
    "unpatch",
]
