"""How many vectors a document may keep: by a factor, by a count, or by a value at which its dendrogram is cut."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

from .. import checks
from .presets import Rules

BUDGETS = ("pool_factor", "max_tokens", "distance_threshold", "max_error")


class Budget(NamedTuple):
    """One of `BUDGETS` and its value."""

    name: str
    value: float

    @property
    def counts(self) -> bool:
        """Whether the number of clusters follows from the number of tokens alone."""
        return self.name in ("pool_factor", "max_tokens")

    def clusters(self, n: int, protected: int, rules: Rules) -> int:
        """Clusters of a document of n tokens, of which `protected` are; 0 where no others are left.

        Of a factor f, `max(n // f, 1)` as Python divides: 11 // 1.1 is 9.
        """
        others = n - protected
        if others == 0:
            return 0
        if self.name == "max_tokens":
            return min(others, int(self.value) - protected)
        divided = n if rules.of_all else others
        share = divided // self.value if rules.rounding == "floor" else math.floor(divided / self.value + 0.5)
        return min(others, max(int(share), 1))


def resolve(given: dict[str, float | None], rules: Rules) -> Budget:
    """The budget that was given.

    Args:
        given: values by the names of `BUDGETS`, None for those that were not.

    Raises:
        TypeError, ValueError: none or several were given, or one is none of its kind; naming the argument.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if len(values) != 1:
        one = "one of pool_factor, max_tokens, distance_threshold and max_error must be given"
        raise ValueError(f"{one}, got {', '.join(f'{name}={value!r}' for name, value in values.items()) or 'none'}")
    ((name, value),) = values.items()
    if name == "pool_factor":
        _check_factor(value, rules)
    elif name == "max_tokens":
        checks.count(name, value, 1)  # type: ignore[arg-type]
        if value <= rules.protected:
            raise ValueError(f"max_tokens must be more than the {rules.protected} protected tokens, got {value}")
    else:
        if name == "max_error" and rules.distance != "euclidean":
            raise ValueError(
                f'max_error must be None unless distance is "euclidean", got {value!r} with {rules.distance!r}'
            )
        checks.cut(given["distance_threshold"], given["max_error"], by_ward=True)
    return Budget(name, value)


def _check_factor(value: object, rules: Rules) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"pool_factor must be a number, got {type(value).__name__}")
    if not 1 <= float(value) < math.inf:
        raise ValueError(f"pool_factor must be at least 1 and finite, got {value}")
    if rules.as_colpali and not isinstance(value, numbers.Integral):
        raise ValueError(f"pool_factor must be an int as colpali-engine takes it, got {value}")
