"""The programs of a documentation page, and how they are run: the way a reader would, in an empty folder.

What an HTML comment right above a fenced block says about it:

- ```` ```python ```` without a comment: run as a program of its own.
- `<!-- file: orders.py -->`: saved under that name for the blocks below to import, then run: with pytest when the
  name says that it is a test, as a program when it has a `__main__` guard, else imported.
- `<!-- no-run: reason -->`: only compiled. With a file name: `<!-- file: server.py, no-run: reason -->`.
- `<!-- run -->` above a ```` ```console ```` block: its `$ ` lines are run by bash, and what they print is compared with
  the lines below them; a line `…` stands for any lines. `<!-- run, exit: 137 -->`: the last command ends with that code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from tests.inner_pytest import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60

FENCE = re.compile(
    r"(?:^[ \t]*<!--(?P<comment>[^\n]*?)-->[ \t]*\n(?:[ \t]*\n)?)?"
    r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=ticks)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
WORD = re.compile(
    r"\s*(?P<key>file|no-run|run|exit)(?:\s*:\s*(?P<value>.*?))?\s*(?:,(?=\s*(?:no-run|run|exit|file)\b)|$)"
)
LANGUAGES = {"python", "py", "console"}


class PageError(AssertionError):
    """A block of a page that doesn't do what the page says."""


class Block(NamedTuple):
    line: int
    language: str
    code: str
    options: dict[str, str]


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in LANGUAGES:
            line = text.count("\n", 0, match.start("ticks")) + 1
            found.append(
                Block(line, match["language"], textwrap.dedent(match["code"]), options(match["comment"] or ""))
            )
    return found


def options(comment: str) -> dict[str, str]:
    """The words of a comment; one that speaks of something else has none."""
    found, at = {}, 0
    while at < len(comment) and (match := WORD.match(comment, at)):
        found[match["key"]] = match["value"] or ""
        at = max(match.end(), at + 1)
    return found


def run_page(text: str, folder: Path) -> int:
    """Run every block of a page in `folder`; return how many were run or compiled.

    Raises:
        PageError: A block failed, or printed something else than the page shows.
    """
    done = 0
    for block in blocks(text):
        if block.language == "console":
            if "run" in block.options:
                run_console(block, folder)
                done += 1
        else:
            run_python(block, folder)
            done += 1
    return done


def run_python(block: Block, folder: Path) -> None:
    name = block.options.get("file", f"block_{block.line}.py")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code, encoding="utf-8")
    try:
        compile(block.code, name, "exec")
    except SyntaxError as error:
        raise PageError(f"line {block.line}: {error}") from error
    if "no-run" in block.options:
        if not block.options["no-run"]:
            raise PageError(f"line {block.line}: no-run needs a reason")
        return
    if path.name.startswith("test_"):
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", name]
    elif "file" in block.options and "__main__" not in block.code:
        command = ["-c", f"import {name.removesuffix('.py').replace('/', '.')}"]
    else:
        command = [name]
    ended = started(["-X", "dev", *command], folder)
    if ended.returncode:
        raise PageError(f"line {block.line}: {name} ended with {ended.returncode}\n{ended.stdout}{ended.stderr}")


def run_console(block: Block, folder: Path) -> None:
    steps: list[tuple[str, list[str]]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif steps:
            steps[-1][1].append(line)
    if not steps:
        raise PageError(f"line {block.line}: a console block that is run has a line that begins with '$ '")
    for number, (command, shown) in enumerate(steps, start=1):
        wanted = int(block.options.get("exit") or 0) if number == len(steps) else 0
        ended = started(["bash", "-c", command], folder, program="/usr/bin/env")
        if ended.returncode != wanted:
            raise PageError(
                f"line {block.line}: `{command}` ended with {ended.returncode}\n{ended.stdout}{ended.stderr}"
            )
        if shown and not matches(shown, ended.stdout):
            raise PageError(
                f"line {block.line}: `{command}` printed\n{ended.stdout}\nand the page shows\n" + "\n".join(shown)
            )


def matches(shown: list[str], printed: str) -> bool:
    pattern = "".join("(?:.*\n)*?" if line.strip() == "…" else re.escape(line.rstrip()) + r"[ \t]*\n" for line in shown)
    return re.fullmatch(pattern, printed.rstrip("\n") + "\n") is not None


def started(arguments: list[str], folder: Path, program: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(folder),
    }
    environment |= {"NO_COLOR": "1", "COLUMNS": "100", **ENVIRONMENT}
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
