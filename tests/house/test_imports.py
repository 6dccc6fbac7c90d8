"""Imports stand at the top of a module, where the layers can be read. The layers themselves: `make imports`."""

from __future__ import annotations

import ast

from tests.house.sources import PACKAGE, PACKAGE_NAME, Module, functions, imported, package_modules, stale

# Path in the package: {what it may import inside a function: why}. A name covers its submodules.
ALLOWED: dict[str, dict[str, str]] = {
    "storage/opening.py": {
        "event_workflow_engine.storage.postgres": "its driver is an extra",
    },
    "testing/plugin.py": {
        "event_workflow_engine": "pytest loads the plugin in every project, and coverage misses what it imports early"
    },
    "triggers.py": {
        "cronsim": "most programs have no cron line, and the core import is to stay quick",
        "zoneinfo": "as cronsim",
    },
}


def hidden_imports(module: Module) -> list[tuple[ast.AST, str]]:
    return [
        (node, name)
        for function in functions(module)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node)
    ]


def is_allowed(module: Module, name: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED.get(module.name, {}))


def test_no_import_hides_in_a_function() -> None:
    found = {
        module.at(node): name
        for module in package_modules()
        for node, name in hidden_imports(module)
        if not is_allowed(module, name)
    }
    assert found == {}


def test_the_list_of_exceptions_is_not_stale() -> None:
    used = {module.name for module in package_modules() if hidden_imports(module)}
    assert stale(dict.fromkeys(ALLOWED, ""), used) == []


def test_imports_are_absolute() -> None:
    relative = [
        module.at(node)
        for module in package_modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_no_module_imports_the_package_root() -> None:
    """The root is the face for users: a module that needed it would pull everything in, and close a cycle."""
    found = []
    for module in package_modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                found += [module.at(node) for alias in node.names if alias.name == PACKAGE_NAME]
            elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE_NAME:
                found += [f"{module.at(node)} {alias.name}" for alias in node.names if not is_submodule(alias.name)]
    assert found == []


def is_submodule(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()
