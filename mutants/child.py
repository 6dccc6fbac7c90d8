"""A process that runs tests on a mutated module: a fork, so that what all of them need is loaded once."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

if TYPE_CHECKING:
    import types
    from collections.abc import Sequence

PACKAGE = "event_workflow_engine"
ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 40.0
"""How long a run of tests may take; a mutant that hangs is one that is seen."""

PASSED = 0
HUNG = -1


def run(tests: Sequence[str], module: str = "", code: str = "") -> tuple[int, str]:
    """Run the tests with a module's code replaced; pytest's exit code, or `HUNG`, and what it printed."""
    if any(name.partition(".")[0] == PACKAGE for name in sys.modules):
        raise RuntimeError("the package is loaded already: a child would not see the mutant")
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory() as folder:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _child(tests, module, code, said.fileno(), folder)
        os.close(writing)
        hung = not select([reading], [], [], PATIENCE_S)[0]  # readable at its end, when the child has ended
        os.close(reading)
        if hung:
            os.kill(pid, 9)
        status = os.waitpid(pid, 0)[1]
        said.seek(0)
        return HUNG if hung else os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def _child(tests: Sequence[str], module: str, code: str, output: int, folder: str) -> None:
    exit_code = 99
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder  # what one mutant failed by is nothing to the next
        os.chdir(ROOT)
        if module:
            sys.meta_path.insert(0, _Finder(f"{PACKAGE}.{module}", code))
        options = [
            "-x",
            "-q",
            "--no-header",
            "--assert=plain",
            "--tb=line",
            "--hypothesis-seed=0",
            "--hypothesis-profile=mutants",
            "--timeout=8",
            "--basetemp",
            f"{folder}/tests",
        ]
        without = [option for name in ("cacheprovider", "xdist") for option in ("-p", f"no:{name}")]
        # That one example fails is enough: nobody reads the smallest one.
        phases, slow = (Phase.explicit, Phase.generate), [HealthCheck.too_slow]
        settings.register_profile("mutants", deadline=None, database=None, phases=phases, suppress_health_check=slow)
        exit_code = int(pytest.main([*options, *without, *tests], plugins=[_ExamplesFirst()]))
    except BaseException:  # noqa: BLE001 - this process ends here, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


class _ExamplesFirst:
    """Runs the tests of many random programs behind the others: most mutants have died by then."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: is_hypothesis_test(getattr(item, "obj", None)))


class _Finder(MetaPathFinder):
    """Finds one module as everybody does, and has it run other code."""

    def __init__(self, name: str, code: str) -> None:
        self._name = name
        self._code = code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._code)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, code: str) -> None:
        super().__init__(fullname, path)
        self._mutated = code

    def get_code(self, fullname: str) -> Any:
        return compile(self._mutated, self.path, "exec", dont_inherit=True)
