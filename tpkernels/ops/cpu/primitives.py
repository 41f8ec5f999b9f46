"""What the compiled loops bring to the clustering operation."""

from __future__ import annotations

from ..problem import Primitives
from .linkage import linkage
from .lloyd import lloyd
from .members import nearest_members
from .nearest import nearest
from .tokens import gather, mean, mean_and_loss, objective, prepare
from .ward import ward

COMPILED = Primitives(
    False, True, prepare, ward, lloyd, nearest, nearest_members, mean, gather, objective, linkage, mean_and_loss
)
