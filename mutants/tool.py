"""cosmic-ray's operators, from a folder of their own: what it needs never mixes with what the project needs."""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / ".packages"
REQUIREMENTS = HERE / "requirements.txt"


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        operator: What was done, by cosmic-ray's name.
        line: Where, from 1.
        was: That line before.
        became: And behind it.
        code: The whole module with it.
    """

    operator: str
    line: int
    was: str
    became: str
    code: str


def ensure() -> None:
    """Install what ``requirements.txt`` names, unless it is there; then find it behind what the project has."""
    stamp, wanted = PACKAGES / ".installed", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(PACKAGES, ignore_errors=True)
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        pip = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
        subprocess.run([*pip, "--quiet", "--target", str(PACKAGES), "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))


def mutants_of(source: str) -> Iterator[Mutant]:
    """Each fault that an operator finds, but for those that only annotations show, and those of an earlier operator."""
    from cosmic_ray.mutating import mutate_code  # noqa: PLC0415 - installed by `ensure`
    from cosmic_ray.plugins import get_operator, operator_names  # noqa: PLC0415 - as above

    seen = {_meaning(source)}
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():
            continue
        for occurrence in count():
            try:
                code = mutate_code(source, operator(), occurrence)
            except AttributeError:  # its operator on exceptions knows no dotted names
                continue
            if code is None:
                break
            meaning = _meaning(code)
            if meaning is None or meaning in seen:
                continue
            seen.add(meaning)
            yield Mutant(name.removeprefix("core/"), *_difference(source, code), code)


def _difference(source: str, code: str) -> tuple[int, str, str]:
    before, behind = source.splitlines(), code.splitlines()
    for number, (was, became) in enumerate(zip(before, behind, strict=False), 1):
        if was != became:
            return number, was.strip(), became.strip() if len(before) == len(behind) else became.strip() + " …"
    return len(before), "", ""


def _meaning(code: str) -> str | None:
    """What a module does, as text; ``None`` where it cannot be compiled."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    return ast.dump(_Bare().visit(tree))


class _Bare(ast.NodeTransformer):
    """Takes away what only type checkers see: annotations, protocols, overloads, and what may be passed by name."""

    def visit_arguments(self, node: ast.arguments) -> Any:
        node.args, node.posonlyargs = [*node.posonlyargs, *node.args, *node.kwonlyargs], []
        node.defaults, node.kwonlyargs, node.kw_defaults = [*node.defaults, *filter(None, node.kw_defaults)], [], []
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        if ast.unparse(node.body) == "...":  # an overload, whether it says so or not
            return None
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        node.returns = None
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            return None
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> Any:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return None
        return self.generic_visit(node)
