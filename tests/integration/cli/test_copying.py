"""`ewe db copy`: what it says, and what it refuses before it touches anything."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.integration.cli.worker import Counted

from event_workflow_engine import WorkflowEngine
from event_workflow_engine.cli.main import FAILED, OK, USAGE, execute
from event_workflow_engine.storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.cli.kit import Ewe

pytestmark = pytest.mark.timeout(60)


def test_to_postgresql_and_back(
    ewe: Ewe, tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["db", "copy", ewe.url, postgres_url]) == FAILED
    assert "ewe db upgrade" in capsys.readouterr().err
    assert execute(["db", "upgrade", "--url", postgres_url]) == OK
    capsys.readouterr()
    assert execute(["db", "copy", ewe.url, postgres_url]) == OK
    table, told = capsys.readouterr()
    # A file that is not there is made.
    assert execute(["db", "copy", postgres_url, f"sqlite:///{tmp_path}/back.db", "--json"]) == OK
    document, told_again = capsys.readouterr()
    copied = json.loads(document)
    for said in (told, told_again):  # once for each part, since it was quick
        copying, comparing, not_retired = said.splitlines()
        assert re.fullmatch(rf"copied up to position \d+ of {copied['position']}", copying)
        assert re.fullmatch(rf"compared up to event \d+ of {copied['events']}", comparing)
        assert not_retired.startswith("the source is as it was, and nothing keeps workers from it: start none there")
    status = ewe.json("db", "status")
    assert (copied["events"], copied["streams"], copied["position"]) == (
        status["estimates"]["events"], status["estimates"]["streams"], status["last_position"],
    )  # fmt: skip
    assert copied["rows"]["sagas"] == 5
    for name, value in (("sagas", 5), ("events", copied["events"]), ("checksum", copied["checksum"])):
        assert re.search(rf"^{name} +{value} *$", table, re.MULTILINE), table

    async def append() -> int:
        async with WorkflowEngine(postgres_url) as engine:
            return (await engine.store.append("count-a", [Counted("c")])).positions[-1]

    assert asyncio.run(append()) > copied["position"]


def test_a_copy_onto_something_is_refused(ewe: Ewe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = f"sqlite:///{tmp_path}/target.db"
    assert execute(["db", "copy", ewe.url, target]) == OK
    capsys.readouterr()
    for onto, said in ((target, "StoreNotEmptyError"), (ewe.url, "the same store")):
        assert execute(["db", "copy", ewe.url, onto]) == FAILED
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1


def test_a_copy_beside_a_worker_is_refused(ewe: Ewe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target.db"
    with ewe.worker() as process:
        assert execute(["db", "copy", ewe.url, f"sqlite:///{target}"]) == FAILED
        assert re.search(rf"StoreInUseError: .*pid {process.pid}", capsys.readouterr().err)
        # A link to the file is another name of the same store, whose workers are the same.
        (tmp_path / "alias.db").symlink_to(ewe.url.removeprefix("sqlite:///"))
        assert execute(["db", "copy", f"sqlite:///{tmp_path}/alias.db", f"sqlite:///{target}"]) == FAILED
        assert re.search(rf"StoreInUseError: .*pid {process.pid}", capsys.readouterr().err)
        assert ewe.json("db", "status")["workers"]
    assert not target.exists()
    assert execute(["db", "copy", ewe.url, f"sqlite:///{target}"]) == OK


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sqlite:///{there}/none.db", "sqlite:///{there}/new.db"], FAILED, "there is no such file"),
        (["memory://", "sqlite:///{there}/new.db"], FAILED, "lives inside its own process"),
        (["sqlite:///{there}/none.db", "memory://"], FAILED, "there is no such file"),
        (["sqlite:///{there}/none.db", "sqlite:///{there}/new.db", "--lease", "0"], FAILED, "above 0"),
        (["sqlite:///{there}/none.db"], USAGE, "--help"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert execute(["db", "copy", *(one.format(there=tmp_path) for one in arguments)]) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_a_newer_version_is_neither_read_nor_written(
    ewe: Ewe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.db"
    assert execute(["db", "copy", ewe.url, f"sqlite:///{other}"]) == OK
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for source, target in ((f"sqlite:///{other}", f"sqlite:///{tmp_path}/new.db"), (ewe.url, f"sqlite:///{other}")):
        capsys.readouterr()
        assert execute(["db", "copy", source, target]) == FAILED
        assert re.match(r"ewe: SchemaVersionError: .* 99, .*upgrade event-workflow-engine", capsys.readouterr().err)
    assert not (tmp_path / "new.db").exists()


def test_tables_that_are_not_copied_are_named(ewe: Ewe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(ewe.url.removeprefix("sqlite:///"))) as connection:
        connection.execute("CREATE TABLE their_own (n INTEGER)")
    assert execute(["db", "copy", ewe.url, f"sqlite:///{tmp_path}/new.db"]) == OK
    assert re.search(r"^left behind +their_own *$", capsys.readouterr().out, re.MULTILINE)


def test_the_target_may_be_an_empty_store(ewe: Ewe, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/target.db"

    async def make() -> None:
        async with open_storage(url):
            pass

    asyncio.run(make())
    assert execute(["db", "copy", ewe.url, url]) == OK
