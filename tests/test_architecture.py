"""Who imports whom: no circle between modules, no import from a higher floor; imports in functions count."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dd3g", "data_gen", "distill", "tools")

# A room on one line imports only from itself and from lines above it. What is not named may import anything
# of its own package that does not make a circle.
FLOORS = (
    ("dd3g.errors", "dd3g.command", "dd3g.fingerprint", "dd3g.homeless", "dd3g.machine", "dd3g.processes"),
    ("dd3g.cameras", "dd3g.gaussians"),
    ("dd3g.io", "dd3g.rasterizer", "dd3g.picture", "dd3g.meshes", "dd3g.models", "dd3g.numba_setup"),
    ("dd3g.nn", "dd3g.diffusion", "dd3g.training"),
    ("dd3g.pepd", "dd3g.pose"),
    (
        *("dd3g.infer", "dd3g.serve", "dd3g.results", "dd3g.benchmark"),
        *("dd3g.convert", "dd3g.info", "dd3g.turntable", "dd3g.view"),
    ),
    ("data_gen", "distill"),
    ("tools",),
)
# Room -> rooms that it never imports, besides those of higher floors.
STRANGERS = {
    "dd3g": ("data_gen", "distill", "tools"),
    "dd3g.pose": ("dd3g.pepd", "dd3g.rasterizer"),
    "dd3g.pepd": ("dd3g.diffusion", "dd3g.pose"),
    "data_gen": ("distill", "tools"),
    "distill": ("data_gen", "tools"),
}
# Circles that are still there, each as the modules of its strongly connected component.
KNOWN_CIRCLES: set[frozenset[str]] = set()
KNOWN_UPWARD: set[tuple[str, str]] = set()
KNOWN_OF_TESTS: set[tuple[str, str]] = set()


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> set[str]:
    """Absolute dotted names that a module imports, at its top or in functions; modules where one is known."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base])
                base = base.rstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in modules() else base)
    return found


@cache
def graph() -> dict[str, frozenset[str]]:
    """Module -> the project's modules that it imports, itself left out."""
    return {
        name: frozenset((imported(name, path) & modules().keys()) - {name})
        for name, path in modules().items()
    }


def circles() -> set[frozenset[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph()[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = set()
            while name not in component:
                component.add(stack.pop())
            if len(component) > 1:
                found.add(frozenset(component))

    for name in sorted(graph()):
        if name not in index:
            visit(name)
    return found


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def floor(name: str) -> int | None:
    rooms = [(len(room), i) for i, row in enumerate(FLOORS) for room in row if within(name, room)]
    return max(rooms)[1] if rooms else None


def upward() -> set[tuple[str, str]]:
    """(importer, imported) against the floors or between strangers."""
    found = set()
    for name, others in graph().items():
        here = floor(name)
        for other in others:
            there = floor(other)
            higher = here is not None and there is not None and there > here
            strange = any(
                within(name, room) and any(within(other, s) for s in strangers)
                for room, strangers in STRANGERS.items()
            )
            if higher or strange:
                found.add((name, other))
    return found


def test_no_import_circle():
    new = circles() - KNOWN_CIRCLES
    assert not new, "modules that import each other: " + "; ".join(" <-> ".join(sorted(c)) for c in new)


def test_no_import_from_a_higher_floor():
    new = upward() - KNOWN_UPWARD
    assert not new, "imports against the floors: " + "; ".join(f"{a} -> {b}" for a, b in sorted(new))


def test_what_is_known_still_exists():
    """An entry of a list of exceptions goes when its reason is gone."""
    assert circles() >= KNOWN_CIRCLES and upward() >= KNOWN_UPWARD


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_imports_tests(package):
    names = {path.stem for path in (ROOT / "tests").rglob("*.py")} - {p.stem for p in modules().values()}
    for name, path in modules().items():
        if within(name, package):
            foreign = {
                (name, i) for i in imported(name, path) if i.split(".")[0] in {"tests", "stand_ins", *names}
            }
            assert foreign <= KNOWN_OF_TESTS, f"{name} imports the tests"


@pytest.mark.parametrize(
    "room", sorted(n for n, p in modules().items() if p.name == "__init__.py" and "." in n)
)
def test_the_page_of_a_room_says_which_file_to_read_first(room):
    page, folder = modules()[room], modules()[room].parent
    words = ast.get_docstring(ast.parse(page.read_text("utf-8"))) or ""
    named = re.findall(r"`([\w/]+\.py)`", words)
    assert named or "`__main__.py`" in words, "it names no file"
    assert all((folder / name).exists() or (ROOT / name).exists() for name in named)
    assert re.search(r"[Rr]ead.*first|read first", words, re.S)
