"""Calls with bad input, and what their exceptions must say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

import tpkernels

X = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
CLUSTERERS = ("kmeans", "kmedoids", "ward")


class Case(NamedTuple):
    """A call, its exception, and regular expressions that the message matches, each somewhere."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    patterns: tuple[str, ...]

    def check(self) -> None:
        """Runs the call: the message is one line, and tells all that it must."""
        with pytest.raises(self.error) as caught:
            self.call()
        message = str(caught.value)
        missing = [pattern for pattern in self.patterns if not re.search(pattern, message)]
        assert not missing, f"{message!r} does not match {missing}"
        assert "\n" not in message


def every_clusterer(name: str, error: type[Exception], patterns: tuple[str, ...], **changes: Any) -> list[Case]:
    """The same mistake in the arguments of kmeans, kmedoids and ward."""
    cases = []
    for method in CLUSTERERS:
        arguments = {"x": X, "k": 3, **changes}
        if method == "ward" and ({"init", "max_iter"} & set(changes)):
            continue
        function = getattr(tpkernels, method)
        cases.append(Case(f"{method}-{name}", lambda f=function, a=arguments: f(**a), error, patterns))
    return cases
