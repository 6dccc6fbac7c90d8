"""The reference has a page for every public module, and none for one that is gone."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import ROOT
from tests.house.sources import PACKAGE, PACKAGE_NAME, package_modules

REFERENCE = ROOT / "docs" / "reference"

# Public without a name in the root: users import from these by name.
BESIDES_THE_ROOT = {"clock", "errors", "storage"}


def public_modules() -> set[str]:
    root = next(module.tree for module in package_modules() if module.path == PACKAGE / "__init__.py")
    return BESIDES_THE_ROOT | {
        (node.module or "").removeprefix(f"{PACKAGE_NAME}.")
        for node in root.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
    }


def test_every_public_module_has_its_page_and_no_other_has() -> None:
    pages = {page.stem: page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md") if page.stem != "index"}
    assert public_modules() - set(pages) == set()
    assert {name for name, text in pages.items() if f"::: {PACKAGE_NAME}.{name}\n" not in text} == set()
    gone = {name for name in pages if not (PACKAGE / f"{name}.py").exists() and not (PACKAGE / name).is_dir()}
    assert gone == set()


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"[\w./-]+\.md\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")} == named
