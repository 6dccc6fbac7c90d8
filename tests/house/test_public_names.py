"""The root of the package is a product of its own: few names, each of them meant."""

from __future__ import annotations

import ast

from tests.house.sources import PACKAGE, package_modules

import event_workflow_engine

ROOT_NAMES = 40


def root() -> ast.Module:
    return next(module.tree for module in package_modules() if module.path == PACKAGE / "__init__.py")


def test_the_root_has_only_imports_and_all() -> None:
    kinds = (ast.Import, ast.ImportFrom)
    others = [
        ast.unparse(node)
        for node in root().body
        if not isinstance(node, kinds)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    ]
    assert others == []


def test_the_root_exports_few_names_in_order() -> None:
    names = list(getattr(event_workflow_engine, "__all__", []))
    assert 0 < len(names) <= ROOT_NAMES
    # The order of ruff's RUF022: constants, classes, functions, each by the alphabet.
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert len(set(names)) == len(names)


def test_every_exported_name_is_there_and_every_import_is_exported() -> None:
    names = set(getattr(event_workflow_engine, "__all__", []))
    assert {name for name in names if not hasattr(event_workflow_engine, name)} == set()
    bound = {
        alias.asname or alias.name
        for node in root().body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert bound == names


def test_every_module_with_all_lists_what_it_has() -> None:
    """`__all__` is what the type checkers and the reference take a module's public names from."""
    found = []
    for module in package_modules():
        top = {name for node in module.tree.body for name in bound_names(node)}
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found += [f"{module.name}: {name}" for name in ast.literal_eval(node.value) if name not in top]
    assert found == []


def bound_names(node: ast.stmt) -> set[str]:
    match node:
        case ast.Import() | ast.ImportFrom():
            return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.If() | ast.Try():
            branches = [
                *node.body,
                *node.orelse,
                *(line for handler in getattr(node, "handlers", []) for line in handler.body),
            ]
            return {name for line in branches for name in bound_names(line)}
        case _:
            return set()
