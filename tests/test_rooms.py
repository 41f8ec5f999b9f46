"""Who may know whom among the tools, the benchmarks and the examples, as `test_layering` has it for the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import ROOT

# Each room with the rooms that it may import besides itself. The package, and what is installed, is free to all.
MAY_IMPORT = {
    "tools": set(),
    "tools/compile_gate": set(),
    "tools/races": set(),
    "tools/mutants": {"benchmarks"},
    "tools/oracle": {"tools"},
    "benchmarks": {"tools"},
    "benchmarks/clustering": {"benchmarks"},
    "benchmarks/tax": {"benchmarks", "examples/common", "examples/deit"},
    "tools/autotune": {"benchmarks", "benchmarks/clustering"},
    "tools/meter": {"tools", "tools/compile_gate", "benchmarks", "benchmarks/clustering"},
    "benchmarks/device": {"benchmarks", "benchmarks/clustering", "tools/compile_gate", "tools/autotune"},
    "benchmarks/readme": {"benchmarks", "benchmarks/clustering", "benchmarks/tax", "benchmarks/device"},
    "benchmarks/__main__": {
        *("benchmarks", "benchmarks/clustering", "benchmarks/tax", "benchmarks/device", "benchmarks/readme"),
        *("tools/compile_gate", "tools/autotune", "tools/meter"),
    },
    "examples/common": set(),
    "examples/deit": {"examples/common"},
    "examples/training": {"examples/common", "examples/deit"},
    "examples/experiments": {"examples/common", "examples/deit"},
    # Programs, some of which build on another.
    "examples": {"examples/common", "examples/deit", "examples/training", "examples/experiments"},
}
HOUSES = ("tools", "benchmarks", "examples")


def module_of(path: Path) -> str:
    """A file's module by its place in the checkout, "benchmarks.tax.gate" or "examples.deit.model"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path for house in HOUSES for path in (ROOT / house).rglob("*.py") if "data" not in path.parts
}


def room_of(module: str) -> str:
    """The room that a module stands in: its folder below the house, or the house for what stands in it directly."""
    for name in ("/".join(module.split(".")[:2]), module.split(".")[0]):
        if name in MAY_IMPORT:
            return name
    raise AssertionError(f"{module} stands in no room that is known here")


def resolved(name: str) -> str | None:
    """The module of the checkout that an import names; programs find what stands beside them without its folder."""
    for prefix in ("", "examples."):
        parts = f"{prefix}{name}".split(".")
        for end in range(len(parts), 0, -1):
            found = ".".join(parts[:end])
            if found in MODULES and found not in HOUSES:
                return found
    return None


def imports_of(module: str) -> Iterator[str]:
    """The modules of the checkout that a module imports, at once or later."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (found for name in names if (found := resolved(name)) is not None)


IMPORTS = {module: set(imports_of(module)) for module in MODULES}


def circle(imports: dict[str, set[str]]) -> set[str]:
    """What is left when all that imports nothing that is left has been taken away, again and again."""
    left = {name: needs - {name} for name, needs in imports.items()}
    while free := {name for name, needs in left.items() if not needs & set(left)}:
        left = {name: needs for name, needs in left.items() if name not in free}
    return set(left)


def test_the_imports_are_seen() -> None:
    assert {room_of(module) for module in MODULES if module not in HOUSES} >= set(MAY_IMPORT) - {"benchmarks/__main__"}
    edges = {(room_of(module), room_of(other)) for module, others in IMPORTS.items() for other in others}
    assert edges >= {
        ("benchmarks/__main__", "tools/compile_gate"),
        ("tools/autotune", "benchmarks/clustering"),
        ("benchmarks/device", "tools/autotune"),
        ("benchmarks/tax", "examples/deit"),
        ("examples", "examples/experiments"),
        ("examples/deit", "examples/common"),
    }


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_point_one_way(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    here = [module for module in MODULES if module not in HOUSES and room_of(module) == room]
    wrong = [(one, other) for one in here for other in sorted(IMPORTS[one]) if room_of(other) not in allowed]
    assert here and not wrong


def test_there_is_no_circle() -> None:
    assert not circle(MAY_IMPORT)
    assert not circle(IMPORTS)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"a", "b", "c"}
