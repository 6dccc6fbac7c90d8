"""Small modules, short functions, and names that say what is inside."""

from __future__ import annotations

from tests.house.sources import functions, modules_of_tests, package_modules

MODULE_LINES = 600
FUNCTION_LINES = 70
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "lib", "base", "core"}


def test_modules_stay_under_the_wall() -> None:
    sizes = {str(module.path): module.text.count("\n") for module in (*package_modules(), *modules_of_tests())}
    assert {path: lines for path, lines in sizes.items() if lines > MODULE_LINES} == {}


def test_functions_stay_under_the_wall() -> None:
    long = {
        f"{module.at(function)} {function.name}": lines
        for module in package_modules()
        for function in functions(module)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    parts = {part for module in package_modules() for part in module.path.with_suffix("").parts[-2:]}
    assert parts & VAGUE == set()
