"""One tree of errors, so that `except WorkflowError` means it."""

from __future__ import annotations

import ast
import builtins

from tests.house.sources import dotted, package_modules

# Name: why it is no WorkflowError.
OUTSIDE_THE_TREE = {
    "BeginError": "between the SQLite session and its writer, which hands on its cause",
    "CommitInDoubtError": "between the SQLite session and its writer, which looks whether the units landed",
    "NotFetchedError": "between judging a batch and the PostgreSQL writer, which fetches what is wanted",
    "StandstillError": "an assertion that a test failed, and a timeout, as pytest and asyncio tell them",
    "UnbalancedEffectsError": "an assertion that a test failed, as pytest tells them",
    "UnusedFakeWarning": "a warning, which pytest tells; only where a user asks for that is it raised",
    "SagaEvicted": "ends a body that has lost its saga; were it an Exception, a user's `except Exception` would keep it alive",
}


def exception_classes() -> dict[str, tuple[str, set[str]]]:
    """Name → (where, all ancestors by name) of every exception class of the package, by reading it."""
    classes: dict[str, tuple[str, list[str]]] = {}
    for module in package_modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                bases = [
                    dotted(base.value if isinstance(base, ast.Subscript) else base).rpartition(".")[2]
                    for base in node.bases
                ]
                classes[node.name] = (module.at(node), bases)

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(base) for base in classes.get(name, ("", []))[1] if base != name))

    found = {}
    for name, (where, _) in classes.items():
        tree = ancestors(name)
        if any(
            isinstance(cls := getattr(builtins, base, None), type) and issubclass(cls, BaseException) for base in tree
        ):
            found[name] = (where, tree)
    return found


def test_public_errors_belong_to_one_tree() -> None:
    strays = {
        name: where
        for name, (where, tree) in exception_classes().items()
        if not name.startswith("_") and name not in OUTSIDE_THE_TREE and "WorkflowError" not in tree
    }
    assert strays == {}


def test_errors_end_in_error() -> None:
    odd = {
        name: where
        for name, (where, tree) in exception_classes().items()
        if not name.startswith("_") and "WorkflowError" in tree and not name.endswith("Error")
    }
    assert odd == {}


def test_errors_are_listed_in_the_tree_that_errors_py_draws() -> None:
    module = next(module for module in package_modules() if module.name == "errors.py")
    drawn = ast.get_docstring(module.tree) or ""
    own = [node.name for node in module.tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Error")]
    assert [name for name in own if name not in drawn] == []
