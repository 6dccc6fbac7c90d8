"""What must not be in the code, nor anywhere in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from typing import TYPE_CHECKING

from tests.house.sources import ROOT, Module, dotted, modules_of_tests, package_modules, stale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Stored data must never choose what code runs: no object serialiser, no evaluation, no import by name, no shell.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "importlib.import_module",
    "import_module",
    "os.system",
    "os.popen",
}

# Path in the package: the one reason why it may do what others may not.
ALLOWED_CALLS: dict[str, str] = {}

# Spelled in pieces, so that this file passes its own test.
FORBIDDEN_TEXT = {
    "a path of some machine": re.compile(r"(?<![\w.:/}*-])/(?:work|opt|root|home)/\w"),
    "a registry's host": re.compile(
        "|".join(["pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.", "crates" + r"\.io"])
    ),
}
# uv writes the default index into its lock; that is what makes the lock verifiable.
GENERATED = {"uv.lock"}


def unsafe_calls(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if FORBIDDEN_MODULES & {name.partition(".")[0] for name in names}:
                yield f"{module.at(node)} imports {names}"
        elif isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                yield f"{module.at(node)} calls {dotted(node.func)}"
            for keyword in node.keywords:
                if keyword.arg == "shell" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"{module.at(node)} passes shell="


def test_data_never_chooses_what_code_runs() -> None:
    assert [
        call for module in package_modules() if module.name not in ALLOWED_CALLS for call in unsafe_calls(module)
    ] == []
    assert stale(ALLOWED_CALLS, {module.name for module in package_modules() if any(unsafe_calls(module))}) == []


def test_no_leftovers() -> None:
    raised = [
        module.at(node)
        for module in package_modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert raised == []


def project_files() -> list[Path]:
    """What git tracks; an unpacked source archive has no git and is all tracked."""
    if (ROOT / ".git").exists():
        names = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for path in project_files():
        if path.name in GENERATED:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture, an archive
            continue
        for what, pattern in FORBIDDEN_TEXT.items():
            found += [f"{path.relative_to(ROOT)}: {what}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_the_patterns_see_what_they_forbid() -> None:
    path, host = FORBIDDEN_TEXT.values()
    assert path.search("cp '/" + "work/main' x")
    assert not path.search("https://example.com/" + "work/a")
    assert host.search("https://files.python" + "hosted.org/a")


def test_tests_neither_sleep_nor_skip_nor_mock() -> None:
    found = []
    for module in modules_of_tests():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                name = dotted(node.func)
                seconds = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else 0
                naps = name in {"sleep", "asyncio.sleep"} and isinstance(seconds, int | float) and 0 < seconds < 1
                if naps or name in {"time.sleep", "pytest.skip", "pytest.xfail", "pytest.importorskip"}:
                    found.append(f"{module.at(node)} {name}")
            elif isinstance(node, ast.Attribute) and dotted(node) in {
                "pytest.mark.skip",
                "pytest.mark.skipif",
                "pytest.mark.xfail",
            }:
                found.append(f"{module.at(node)} {dotted(node)}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unittest"):
                found.append(f"{module.at(node)} {node.module}")
    assert found == []
