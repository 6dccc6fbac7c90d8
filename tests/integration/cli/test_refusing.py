"""What the command line refuses: one line on standard error, nothing on standard output, nothing touched."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from event_workflow_engine import NewEvent, WorkflowEngine, event
from event_workflow_engine.cli.main import execute

if TYPE_CHECKING:
    from tests.integration.cli.kit import Ewe

COMMANDS = [
    ["run", "list"],
    ["run", "show", "x"],
    ["run", "watch", "x"],
    ["run", "signal", "x", "go"],
    ["run", "cancel", "x"],
    ["stream", "ls"],
    ["stream", "show", "x"],
    ["stream", "tail", "--after", "0", "-n", "1"],
    ["projection", "ls"],
    ["projection", "rebuild", "cli-counts", "--app", "tests.integration.cli.worker"],
    ["db", "status"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_missing_file_is_told_and_not_made(
    empty: Ewe, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    ended = empty(*command)
    assert (ended.code, ended.out) == (1, "")
    assert "there is no such file" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello, I am no database at all", b"SQLite format 3\0" + b"\xff" * 200])
def test_a_file_that_is_no_store_is_left_as_it_is(empty: Ewe, content: bytes) -> None:
    path = Path(empty.url.removeprefix("sqlite:///"))
    path.write_bytes(content)
    for command in COMMANDS[:1]:
        ended = empty(*command, "--json")
        assert (ended.code, ended.out) == (1, "")
        assert len(ended.err.splitlines()) == 1
        assert "Traceback" not in ended.err
    assert path.read_bytes() == content


def test_no_command_makes_or_migrates_a_schema(empty: Ewe) -> None:
    path = empty.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")  # a database of nobody: a header and no table
    ended = empty("run", "list")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("ewe: SchemaVersionError: ")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


@pytest.mark.parametrize(
    "url", ["memory://", "nonsense", "mysql://x", "sqlite://", "postgresql://localhost/x?schema=X"]
)
def test_a_url_that_names_no_shared_store_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", "list", "--url", url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ewe: DefinitionError: ")
    assert len(err.splitlines()) == 1


def test_the_url_comes_from_the_environment_unless_it_is_given(
    ewe: Ewe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["db", "status"]) == 1
    assert "ewe.db" in capsys.readouterr().err
    monkeypatch.setenv("EWE_URL", ewe.url)
    assert execute(["db", "status"]) == 0


@pytest.mark.parametrize("command", [["run", "show", "x"], ["run", "watch", "x"], ["run", "cancel", "x"]])
def test_an_unknown_saga_is_told(ewe: Ewe, command: list[str]) -> None:
    ended = ewe(*command, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert "there is no saga 'x'" in ended.err


@pytest.mark.parametrize(
    "command",
    [
        ["nonsense"],
        ["run", "nonsense"],
        ["run", "show"],
        ["run", "list", "--state", "SLEEPING"],
        ["run", "list", "--limit", "0"],
        ["run", "list", "--limit", "many"],
        ["run", "list", "--nonsense"],
        ["run", "signal", "w-1", "go", "{not json"],
        ["stream", "show", "x", "--after", "-1"],
        ["stream", "tail", "-n", "0"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_two_and_one_line(ewe: Ewe, command: list[str]) -> None:
    ended = ewe(*command)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("ewe: ")
    assert len(ended.err.splitlines()) == 1


def test_a_page_that_cannot_be_read_to_its_end_is_not_begun(ewe: Ewe) -> None:
    """Two good events and one that no longer fits its type: not one of them is told."""

    async def work(engine: WorkflowEngine) -> None:
        await engine.store.append("odd-1", [NewEvent("cli-odd", {"n": n}) for n in (1, 2, "three")])

    ewe.engine(work, worker=False)
    assert len(ewe.json("stream", "show", "odd-1")["events"]) == 3

    @event("cli-odd")
    @dataclass(frozen=True)
    class Odd:
        n: int

    for form in ([], ["--json"]):
        ended = ewe("stream", "show", "odd-1", *form)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("ewe: DecodeError: ")
    assert len(ewe.json("stream", "show", "odd-1", "-n", "1")["events"]) == 1


def test_every_group_and_command_helps(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["run"], ["run", "list"], ["stream", "tail"], ["projection", "rebuild"], ["demo"]):
        assert execute([*words, "--help"]) == 0
        assert "Usage: ewe" in capsys.readouterr().out
    assert execute(["--version"]) == 0


def test_a_reader_that_has_enough_ends_it_quietly(ewe: Ewe) -> None:
    async def work(engine: WorkflowEngine) -> None:
        await engine.store.append("long-1", [NewEvent("cli-long", "x" * 1_000) for _ in range(300)])

    ewe.engine(work, worker=False)
    process = ewe.popen("stream", "tail", "--after", "0", "--json", "--category", "long")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    try:
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        process.stderr.close()
