"""The nine programs of the contract, word for word, and five mistakes: what type checkers make of them.

Both checkers run once, side by side, over everything, with a configuration of their own: a user's, at its strictest.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PROGRAMS = sorted((HERE / "programs").glob("*.py"))
MISTAKES = HERE / "mistakes.py"
INFERRED = HERE / "inferred.py"
MARKED = {n for n, line in enumerate(MISTAKES.read_text().splitlines(), 1) if re.search(r"# [1-5] \w", line)}
CACHE = HERE.parents[1] / ".mypy_cache" / "programs"

Errors = dict[str, list[str]]
"""For each checker what it reports: ``file:line: text``."""


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    folder = tmp_path_factory.mktemp("checkers")
    with contextlib.ExitStack() as stack:
        mypy = stack.enter_context(started_mypy(folder))
        pyright = stack.enter_context(started_pyright(folder))
        return {"mypy": mypy_errors(finished(mypy)), "pyright": pyright_errors(finished(pyright))}


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        try:
            yield process
        finally:
            process.kill()


def started_mypy(folder: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    config = folder / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = True\nmypy_path = {HERE / 'programs'}\ncache_dir = {CACHE}\n")
    options = ["--config-file", str(config), "--no-error-summary", "--show-absolute-path", "--no-pretty"]
    return started([sys.executable, "-m", "mypy", *options, *map(str, [*PROGRAMS, MISTAKES, INFERRED])])


def started_pyright(folder: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    config = folder / "pyrightconfig.json"
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(HERE / "programs")]}
    # pyright takes no absolute paths in its configuration, hence links to what is checked.
    settings["include"] = ["programs", MISTAKES.name, INFERRED.name]
    (folder / "programs").symlink_to(HERE / "programs")
    for file in (MISTAKES, INFERRED):
        (folder / file.name).symlink_to(file)
    config.write_text(json.dumps(settings))
    options = ["--project", str(config), "--outputjson", "--pythonpath", sys.executable]
    return started([sys.executable, "-m", "pyright", *options])


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    # 1 is for errors found; anything above is a checker that could not do its work.
    assert process.returncode in (0, 1), f"{process.args} ended with {process.returncode}:\n{out}\n{err}"
    return out


def mypy_errors(out: str) -> list[str]:
    found = re.findall(r"^(\S+?):(\d+): error: (.*)$", out, re.MULTILINE)
    return [f"{Path(file).name}:{line}: {text}" for file, line, text in found]


def pyright_errors(out: str) -> list[str]:
    answer: dict[str, Any] = json.loads(out)
    assert answer["summary"]["filesAnalyzed"] == len(PROGRAMS) + 2
    return [
        f"{Path(each['file']).name}:{each['range']['start']['line'] + 1}: {each['message']}"
        for each in answer["generalDiagnostics"]
        if each["severity"] in ("error", "warning")
    ]


CHECKERS = pytest.mark.parametrize("checker", ["mypy", "pyright"])
# The first run reads the stubs of FastAPI and all that it needs; mypy keeps them for the next.
FIRST_RUN = pytest.mark.timeout(300)


def test_there_are_nine_programs_and_five_mistakes():
    assert len(PROGRAMS) == 9
    assert len(MARKED) == 5


def of(file: Path, errors: list[str]) -> list[str]:
    return [error for error in errors if error.startswith(f"{file.name}:")]


@FIRST_RUN
@CHECKERS
def test_the_nine_programs_are_free_of_errors(checker: str, reported: Errors):
    assert [error for program in PROGRAMS for error in of(program, reported[checker])] == []


@FIRST_RUN
@CHECKERS
def test_types_are_inferred(checker: str, reported: Errors):
    assert of(INFERRED, reported[checker]) == []


@FIRST_RUN
@CHECKERS
def test_the_five_mistakes_are_found_each_on_its_line_and_nothing_else(checker: str, reported: Errors):
    found = of(MISTAKES, reported[checker])
    lines = Counter(int(error.split(":")[1]) for error in found)
    assert set(lines) == MARKED, found
    # pyright reports an overload that does not match twice: the call, and the argument that comes nearest.
    assert all(count == 1 for count in lines.values()) or checker == "pyright", found
