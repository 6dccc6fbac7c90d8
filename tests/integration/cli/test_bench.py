"""`ewe bench`: what it finds, and that nothing of it stays, however it ends."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from tests.integration.postgres.kit import Server

from event_workflow_engine.cli.main import execute

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = ["--seconds", "0.02", "--callers", "3"]
LIMITS = {"sqlite": ["fsync", "fdatasync", "commits"], "postgres": ["commits"]}
OURS = ["append", "steps", "saga", "appends_at_once", "steps_at_once"]


def names(url: str) -> list[str]:
    """What is there: the files beside a SQLite file, the schemas of a database."""
    if url.startswith("sqlite"):
        return sorted(path.name for path in Path(url.removeprefix("sqlite:///")).parent.iterdir())

    async def schemas() -> list[str]:
        connection = await asyncpg.connect(url.partition("?")[0])
        try:
            rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'")
        finally:
            await connection.close()
        return sorted(row["nspname"] for row in rows)

    return asyncio.run(schemas())


@pytest.fixture
def database(postgres: str) -> Iterator[Server]:
    """A database of its own, at whose schemas nobody else works."""
    made = f"bench_{uuid4().hex[:12]}"
    server = Server(postgres.partition("?")[0])
    asyncio.run(server.run(f"CREATE DATABASE {made}"))
    yield Server(server.at(database=made))
    asyncio.run(server.run(f"DROP DATABASE {made} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("database")
        return server.url
    return f"sqlite:///{tmp_path}/store.db"


def test_json_has_every_figure_and_its_limit_and_nothing_stays(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(url)
    assert execute(["bench", url, "--json", *SMALL]) == 0
    told = capsys.readouterr()
    found: dict[str, Any] = json.loads(told.out)
    assert names(url) == before
    secret = url.partition("@")[0].rpartition(":")[2]
    assert secret.startswith("///") or secret not in told.out + told.err
    assert {name: found[name] for name in ("backend", "seconds", "callers")} == {
        "backend": url[:8].partition(":")[0].removesuffix("ql"), "seconds": 0.02, "callers": 3,
    }  # fmt: skip
    assert [line["what"] for line in found["limits"]] == LIMITS[found["backend"]]
    assert [line["what"] for line in found["ours"]] == OURS
    for line in (*found["limits"], *found["ours"]):
        assert line["per_s"] > 0
        if line["what"] == "steps":
            assert line["p50_ms"] is line["p95_ms"] is line["p99_ms"] is None
        else:
            assert 0 < line["p50_ms"] <= line["p95_ms"] <= line["p99_ms"]
    assert len(found["commits_per_s"]) == 4
    for line in found["ours"]:
        assert line["of_limit"] == pytest.approx(line["per_s"] / line["limit_per_s"])
    assert set(found["settings"]) == (set() if found["backend"] == "sqlite" else {"fsync", "synchronous_commit"})


def test_the_table_says_what_it_means(database: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", database.url, *SMALL]) == 0
    out = capsys.readouterr().out
    for said in ("bare commits of one row", "appends, 3 writers at once", "of limit", "This database acknowledges"):
        assert said in out
    # The server of the tests runs so.
    assert "fsync is off on this server" in out


def test_without_a_url_it_measures_the_current_folder_and_leaves_the_store_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EWE_URL", "sqlite:////nowhere/of-production.db")
    Path("ewe.db").write_bytes(b"what a user keeps")
    assert execute(["bench", *SMALL]) == 0
    assert "Your disk makes" in capsys.readouterr().out
    assert Path("ewe.db").read_bytes() == b"what a user keeps"
    assert list(tmp_path.iterdir()) == [tmp_path / "ewe.db"]


# -- however it ends -------------------------------------------------------------------------------------------------


def heed_interrupts() -> None:
    """What a shell started behind its back ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(url: str, *options: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "event_workflow_engine.cli.main", "bench", url, *options]
    more = {"preexec_fn": heed_interrupts, **more}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("url", "seconds", "at", "signals"),
    [
        # Where nothing waits: the disk alone would be measured for a minute.
        ("sqlite", "60", "the disk", [signal.SIGINT]),
        ("sqlite", "1", "appends, one caller", [signal.SIGINT, signal.SIGTERM]),
        ("postgres", "1", "appends, one caller", [signal.SIGINT, signal.SIGTERM]),
    ],
    indirect=["url"],
)
def test_an_interrupted_one_ends_at_once_and_leaves_nothing(
    url: str, seconds: str, at: str, signals: list[signal.Signals], tmp_path: Path
) -> None:
    before = names(url)
    with started(url, "--seconds", seconds) as process:
        assert process.stderr is not None
        while process.stderr.readline() != f"measuring {at}\n":
            assert process.poll() is None
        while at == "the disk" and not any(path.stat().st_size for path in tmp_path.glob("*/fsync")):
            assert process.poll() is None
        assert names(url) != before
        for one in signals:
            process.send_signal(one)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert names(url) == before


def test_a_disk_that_takes_no_more_is_told_and_nothing_stays(tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with started(f"sqlite:///{tmp_path}/store.db", "--quick", preexec_fn=small) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "StorageUnavailableError" in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_takes_no_more_is_told_and_nothing_stays(
    database: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    role = granted(database, "CREATE ON DATABASE")
    asyncio.run(database.run(f"ALTER ROLE {role} SET default_transaction_read_only = on"))
    before = names(database.url)
    assert execute(["bench", database.at(user=role), *SMALL]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "read-only" in told.err
    assert names(database.url) == before


def granted(database: Server, right: str) -> str:
    async def make() -> str:
        role = await database.role()
        await database.run(f"GRANT {right} {database.url.rpartition('/')[2]} TO {role}")
        return role

    return asyncio.run(make())


# -- what it refuses -------------------------------------------------------------------------------------------------


def test_a_role_that_may_not_make_a_schema_is_told_what_it_lacks(
    database: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    role, before = granted(database, "CONNECT ON DATABASE"), names(database.url)
    assert execute(["bench", database.at(user=role), *SMALL]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "StorageUnavailableError" in told.err
    assert "GRANT CREATE ON DATABASE" in told.err
    assert names(database.url) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["memory://"], "DefinitionError: memory://: a store in memory has no disk"),
        (["mysql://host/database"], "DefinitionError: no backend takes mysql://"),
        (["sqlite:////no/such/folder/ewe.db"], "StorageUnavailableError: /no/such/folder: the directory does not exist"),
        (["sqlite:////proc/self/ewe.db"], "StorageUnavailableError: /proc/"),
        (["--seconds", "0"], "DefinitionError: --seconds 0"),
        (["--seconds", "61"], "DefinitionError: --seconds 61"),
        (["--seconds", "1", "--quick"], "DefinitionError: --seconds 1"),
        (["--callers", "0"], "DefinitionError: --callers 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["bench", *arguments]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"ewe: {said}")
    assert len(told.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
