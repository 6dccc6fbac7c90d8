"""The project's own files, as the house tests read them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
PACKAGE = SRC / "event_workflow_engine"
PACKAGE_NAME = PACKAGE.name

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """The path as it is written in the lists of exceptions: relative to the package, or to the repository."""
        base = PACKAGE if self.path.is_relative_to(PACKAGE) else ROOT
        return self.path.relative_to(base).as_posix()

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


@cache
def modules_under(folder: Path) -> tuple[Module, ...]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Module(path, text, ast.parse(text, filename=str(path))))
    return tuple(found)


def package_modules() -> tuple[Module, ...]:
    return modules_under(PACKAGE)


def modules_of_tests() -> tuple[Module, ...]:
    return modules_under(ROOT / "tests")


def functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names, else the empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def docstrings(module: Module) -> set[int]:
    """The ids of the constants that are docstrings (or other bare strings, which do nothing either)."""
    return {
        id(node.value)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def texts(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every string literal that is not a docstring; the holes of an f-string read `{}`."""
    skip = docstrings(module)
    inside_fstrings: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.JoinedStr):
            inside_fstrings.update(id(part) for part in node.values)
            yield node, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in skip
            and id(node) not in inside_fstrings
        ):
            yield node, node.value


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement imports, by their full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return ["." * node.level + (node.module or "")]


def stale(exceptions: dict[str, str], used: set[str]) -> list[str]:
    """The exceptions that name a file which exists and no longer needs one: a list of exceptions only shrinks."""
    return sorted(name for name in exceptions if (PACKAGE / name).exists() and name not in used)
