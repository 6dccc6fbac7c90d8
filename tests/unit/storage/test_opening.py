from __future__ import annotations

import sys
from pathlib import Path

import pytest

from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.storage import open_storage
from event_workflow_engine.storage.memory import MemoryStorage
from event_workflow_engine.storage.sqlite import SqliteStorage


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///trips.db", "trips.db"),
        ("sqlite:///data/trips.db", "data/trips.db"),
        ("sqlite:////var/lib/trips.db", "/var/lib/trips.db"),
        ("sqlite:///with space%20.db", "with space%20.db"),
        ("sqlite:///a#b.db", "a#b.db"),
    ],
)
def test_a_path_is_what_stands_behind_three_slashes(url: str, path: str) -> None:
    storage = open_storage(url)
    assert isinstance(storage, SqliteStorage)
    assert (storage.path, storage.url) == (str(Path(path).absolute()), url)


def test_memory() -> None:
    storage = open_storage("memory://")
    assert isinstance(storage, MemoryStorage)
    assert storage.url == "memory://"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "trips.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://trips.db",
        "sqlite:////",
        "sqlite:///folder/",
        "sqlite:///:memory:",
        "sqlite:///nul\0.db",
        "sqlite:///trips.db?timeout=5",
        "memory://x",
        "mysql://host/db",
        "://",
    ],
)
def test_a_bad_url_says_what_is_supported(url: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        open_storage(url)
    assert repr(url) in str(caught.value) or url.partition("://")[0] in str(caught.value)
    assert "memory" in str(caught.value)


def test_postgresql_names_the_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("event_workflow_engine.storage.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(DefinitionError, match="with its extra postgres"):
        open_storage("postgresql://localhost/x")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql://u:secret@h/d?schema=Upper", "schema='Upper'"),
        ("postgresql://u:secret@h/d?schema=a;b", "schema='a;b'"),
        ("postgresql://u:secret@h/d?schema=", "schema=''"),
        ("postgresql://u:secret@h/d?schema=größe", "schema='größe'"),
        ("postgresql://u:secret@h/d?schema=1a", "schema='1a'"),
        ("postgresql://u:secret@h/d?schema=a%20b", "schema='a b'"),
        ("postgresql://u:secret@h/d?schema=a%0A", "schema='a\\n'"),
        ('postgresql://u:secret@h/d?schema="a"', "schema="),
        (f"postgresql://u:secret@h/d?schema={'a' * 42}", "up to 41"),
        ("postgresql://u:secret@h/d?schema=pg_x", "pg_ first"),
        ("postgresql://u:secret@h/d?schema=information_schema", "schema='information_schema'"),
        ("postgresql://u:secret@h/d?pool=0", "pool='0'"),
        ("postgresql://u:secret@h/d?pool=many", "pool='many'"),
        ("postgresql://u:secret@h/d?pool=²", "pool='²'"),
        ("postgresql://u:secret@h/d?prepared=maybe", "prepared='maybe'"),
        ("postgresql://u:secret@h:65536/d", "postgresql://u:***@h:65536/d: '65536' is no port"),
        ("postgresql://u:secret@h,i:0/d", "'0' is no port"),
        ("postgresql://u:secret@[::1]:99999/d", "'99999' is no port"),
        ("postgresql://u:secret@/d?host=h:70000", "'70000' is no port"),
        ("postgresql://u:secret@/d?host=h,i&port=1,x", "'x' is no port"),
        ("postgresql://u:secret@h/d?listen=nonsense", "postgresql://u:***@h/d?listen=…: listen= must be off"),
        ("postgresql://u:secret@h/d?listen=", "listen= must be off"),
        ("postgresql://u:secret@h/d?listen=u:secret@h/d&schema=Upper", "listen= must be off"),
        ("postgresql://u:secret@h/d?listen=sqlite:///secret", "listen= must be off"),
        ("postgresql://u:secret@h/d?listen=postgresql://u:secret@h:70000/d", "listen=: '70000' is no port"),
        ("postgresql://u:secret@h/d?listen=postgresql://u:secret/1@h/d", "listen= cannot be read"),
        ("postgresql://u:secret@[h/d", "cannot be read"),
        ("postgresql://u:secret@h:port/d", "cannot be read"),
        ("postgresql://u:secret/1@h/d", "%2F"),
        ("postgresql://u:secret?1@h/d", "%3F"),
        ("postgresql://u:secret#1@h/d", "%23"),
        ("postgresql://u:1/secret@h/d", "%2F"),
        ("postgresql://u:1?secret@h/d", "%3F"),
        ("postgresql://u:1#secret@h/d", "%23"),
        ("postgresql://u:secret\u2100@h/d", "cannot be read"),
    ],
)
def test_options_of_postgresql_are_checked_and_no_password_is_shown(url: str, what: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        open_storage(url)
    assert what in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_the_url_of_a_postgresql_store_is_shown_without_its_password(scheme: str) -> None:
    assert open_storage(f"{scheme}://u:secret@h:5/d?schema=x").url == f"{scheme}://u:***@h:5/d?schema=x"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://h/d?user=u&password=secret&pool=2", "postgresql://h/d?user=u&password=***&pool=2"),
        ("postgresql://u:secret@h/d?listen=postgresql://u:secret@i/d", "postgresql://u:***@h/d?listen=postgresql://u:***@i/d"),
        (
            "postgresql://h/d?listen=postgresql%3A%2F%2Fi%2Fd%3Fpassword%3Dsecret&schema=x",
            "postgresql://h/d?listen=postgresql://i/d?password=***&schema=x",
        ),
        ("postgresql://h/d?pasword=secret&Password=secret&pwd=secret", "postgresql://h/d?pasword=***&Password=***&pwd=***"),
        ("postgresql://u:se@c:ret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:secret@[::1]:5,i:6,j/d", "postgresql://u:***@[::1]:5,i:6,j/d"),
        ("postgresql://u@%2Ftmp/d", "postgresql://u@%2Ftmp/d"),
        ("postgresql:///d", "postgresql:///d"),
    ],
)  # fmt: skip
def test_no_password_is_shown_wherever_it_stands_in_the_url_of_a_postgresql_store(url: str, shown: str) -> None:
    assert open_storage(url).url == shown


def test_nothing_is_touched_before_entering(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path / 'a.db'}")
    assert list(tmp_path.iterdir()) == []


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["plain.db", "with space.db", "q?x#y%20.db", "größe.db", "it's.db"])
async def test_any_name_makes_that_file(tmp_path: Path, name: str) -> None:
    async with SqliteStorage(tmp_path / name) as storage:
        assert await storage.last_position() == 0
    assert names_in(tmp_path) == {name, f"{name}-ewe.lock", f"{name}-ewe.turn"}
