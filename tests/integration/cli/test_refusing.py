"""What the command line refuses: one line on standard error, nothing on standard output, nothing touched."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

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
    ["run", "pause", "x"],
    ["queue", "ls"],
    ["queue", "pause", "x"],
    ["db", "status"],
    ["db", "check"],
    ["db", "staged"],
    ["db", "staged", "drop", "x"],
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
    assert "see ewe run list" in ended.err


@pytest.mark.parametrize("form", [[], ["--json"], ["--after", "3"], ["--backwards"]], ids=" ".join)
def test_an_unknown_stream_is_told(ewe: Ewe, form: list[str]) -> None:
    ended = ewe("stream", "show", "nope", *form)
    assert (ended.code, ended.out) == (1, "")
    assert "there is no stream 'nope'" in ended.err
    assert "see ewe stream ls" in ended.err


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
        ["stream", "show", "x", "--after", "9" * 20],
        ["db", "staged", "--limit", "9" * 20],
        ["run", "signal", "w-1", "go", "1" * 5000],
        ["db", "staged", "nonsense"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_two_and_one_line(ewe: Ewe, command: list[str]) -> None:
    ended = ewe(*command)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("ewe: ")
    assert len(ended.err.splitlines()) == 1
    assert len(ended.err) < 2100


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["run", "signal", "w-1", "\udcff"], "signal name"),
        (["run", "signal", "w-1", ""], "signal name"),
        (["run", "cancel", "w-1", "--reason", "\udcff"], "nothing was sent"),
        (["run", "show", "a\0b"], "NUL"),
        (["run", "show", "x" * 5000], "too long"),
        (["queue", "pause", "\udcff"], "does not fit"),
        (["stream", "show", "\udcff"], "stream name"),
        (["projection", "rebuild", "p", "--app", "tests:x", "--timeout", "nan"], "above 0"),
    ],
    ids=repr,
)
def test_words_that_name_nothing_are_told(ewe: Ewe, command: list[str], said: str) -> None:
    ended = ewe(*command)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom, at {file}:1"),
        ("import sys; sys.exit('no config')", "SystemExit: no config, at {file}:1"),
        ("import no_such_module", "No module named 'no_such_module', at {file}:1"),
        ("def (", "SyntaxError"),
        ("engine = 3", "the module has a int there"),
        ("other = 3", "no attribute 'engine'"),
    ],
)
def test_a_module_that_cannot_be_used_is_told_with_its_line(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    name = f"module_{uuid4().hex}"
    file = tmp_path / f"{name}.py"
    file.write_text(code, encoding="utf-8")
    commands = [["worker", f"{name}:engine"]]
    if "=" not in code:
        commands.append(["projection", "rebuild", "p", "--app", name, "--url", "sqlite:///x.db"])
    (tmp_path / "x.db").write_bytes(b"not read before")
    for command in commands:
        assert execute(command) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert said.format(file=file) in err
        assert len(err.splitlines()) == 1


def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    """In a process of its own, which may give up its rights."""
    (tmp_path / "closed").mkdir(mode=0)
    program = (
        "import os, sys\n"
        "from event_workflow_engine.cli.main import execute\n"
        "from event_workflow_engine.cli import opening\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "for command in (['run', 'list'], ['db', 'status', '--json'], ['db', 'upgrade']):\n"
        "    assert execute([*command, '--url', sys.argv[1]]) == 1\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    url = f"sqlite:///{tmp_path}/closed/x.db"
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [line.endswith("Permission denied: check the path, its owner and mode") for line in done.stderr.splitlines()] == [
        True, True, True,
    ]  # fmt: skip


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
