"""The `eventsourcing` library on SQLite (WAL, as it sets) and PostgreSQL.

Run by the peers' own interpreter, prints one line of JSON.

``python eventsourcing_store.py append FOLDER '{"events": 1000}'``
"""

import json
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.system import ProcessApplication, SingleThreadedRunner, System


class Account(Aggregate):
    """An account that counts what was deposited."""

    class Opened(Aggregate.Created):
        account: str

    @event(Opened)
    def __init__(self, account: str) -> None:
        self.account = account
        self.cents = 0

    @event("Deposited")
    def deposit(self, order: str, cents: int) -> None:
        """Add cents."""
        self.cents += cents


class Total(Aggregate):
    """The read model of one key, kept as an aggregate, as process applications do."""

    @event("Started")
    def __init__(self, key: str) -> None:
        self.key = key
        self.cents = 0

    @staticmethod
    def create_id(key: str) -> UUID:
        """The id that belongs to a key."""
        return uuid5(NAMESPACE_URL, f"/totals/{key}")

    @event("Added")
    def add(self, cents: int) -> None:
        """Add cents."""
        self.cents += cents


class Accounts(Application):
    """The source of events."""


class Totals(ProcessApplication):
    """Folds each deposit into the total of its account, exactly once."""

    def policy(self, domain_event, processing_event) -> None:  # noqa: ANN001
        """Called with every event in order."""
        if not isinstance(domain_event, Account.Deposited):
            return
        key = str(domain_event.originator_id)
        total_id = Total.create_id(key)
        try:
            total = self.repository.get(total_id)
        except AggregateNotFoundError:
            total = Total(key)
        total.add(domain_event.cents)
        processing_event.collect_events(total)


class Counter(ProcessApplication):
    """The least a process application can do with an event: record that it saw it."""

    def policy(self, domain_event, processing_event) -> None:  # noqa: ANN001
        """Called with every event in order; only its tracking record is stored."""
        self.seen = getattr(self, "seen", 0) + 1


def environment(folder: Path) -> dict[str, str]:
    """Where and how it stores, else its defaults."""
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "es.db")}


def append(folder: Path, events: int = 3000) -> dict[str, float]:
    """Saving new aggregates of one event each, one after another (see `append_threads` for several writers)."""
    app = Accounts(env=environment(folder))
    app.save(Account("warm"))
    begun = perf_counter()
    for n in range(events):
        app.save(Account(f"a-{n}"))
    return {"events_per_s": events / (perf_counter() - begun)}


def append_threads(folder: Path, events: int = 3000, writers: int = 8) -> dict[str, float]:
    """The same from several threads."""
    app = Accounts(env=environment(folder))
    app.save(Account("warm"))

    def write(thread: int) -> None:
        for n in range(events // writers):
            app.save(Account(f"a-{thread}-{n}"))

    begun = perf_counter()
    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"events_per_s": events // writers * writers / (perf_counter() - begun)}


def append_postgres(
    folder: Path, url: str, writers: int = 64, width: int = 3, seconds: float = 1.5
) -> dict[str, float]:
    """Threads that each save so many new events of an aggregate of their own at a time; one thread; and both with the
    inserts in a function of the server's, which is its own way to be faster. The best counts."""
    server = urlsplit(url)
    base = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": server.path.lstrip("/"),
        "POSTGRES_HOST": server.hostname or "",
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_USER": server.username or "",
        "POSTGRES_PASSWORD": server.password or "",
        "POSTGRES_POOL_SIZE": str(writers),
        "POSTGRES_SCHEMA": "public",
    }
    figures = {}
    for suffix, functions in (("", "no"), ("_functions", "yes")):
        app = Accounts(env=base | {"POSTGRES_ENABLE_DB_FUNCTIONS": functions})
        _saves(app, 1, width, 0.2)
        for threads in (1, writers):
            figures[f"events_per_s_{threads}{suffix}"] = _saves(app, threads, width, seconds)
        app.close()
    return {"events_per_s": max(figures.values()), **figures}


def _saves(app: Accounts, threads: int, width: int, seconds: float) -> float:
    """Events a second that so many threads save."""
    counts = [0] * threads
    deadline = perf_counter() + seconds

    def write(thread: int) -> None:
        account = Account(f"a-{thread}")
        app.save(account)
        while perf_counter() < deadline:
            for n in range(width):
                account.deposit(f"o-{n}", n)
            app.save(account)
            counts[thread] += width

    begun = perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
    return sum(counts) / (perf_counter() - begun)


def load(folder: Path, events: int = 10_000, rounds: int = 5) -> dict[str, float]:
    """Loading an aggregate without a snapshot."""
    app = Accounts(env=environment(folder))
    account = Account("a")
    for n in range(events - 1):
        account.deposit(f"o-{n}", n % 100)
    app.save(account)
    taken = []
    for _ in range(rounds):
        begun = perf_counter()
        loaded = app.repository.get(account.id)
        taken.append((perf_counter() - begun) * 1000)
        assert loaded.version == events
    return {"load_ms": statistics.median(taken)}


def system(folder: Path, events: int = 5000, keys: int = 100) -> dict[str, float]:
    """Events already stored go through a process application: one that keeps a total a key, one that only tracks.

    Its projection runner has no subscriptions on SQLite, so this is its exactly-once way there. Aggregates are cached.
    """
    env = environment(folder) | {"AGGREGATE_CACHE_MAXSIZE": "1000", "DEEPCOPY_FROM_AGGREGATE_CACHE": "no"}
    rates = {}
    for name, follower in (("events_per_s", Totals), ("tracking_only_per_s", Counter)):
        place = folder / name
        place.mkdir()
        for app in (Accounts, follower):
            env[f"{app.name.upper()}_SQLITE_DBNAME"] = str(place / f"{app.name}.db")
        runner = SingleThreadedRunner(System(pipes=[[Accounts, follower]]), env)
        source, sink = runner.get(Accounts), runner.get(follower)
        sink.follow(Accounts.name, source.notification_log)
        for key in range(keys):
            account = Account(f"a-{key}")
            for n in range(events // keys - 1):
                account.deposit(f"o-{n}", n % 100)
            source.save(account)
        begun = perf_counter()
        sink.pull_and_process(Accounts.name)
        rates[name] = events // keys * keys / (perf_counter() - begun)
        assert sink.recorder.max_tracking_id(Accounts.name) == events // keys * keys
        runner.stop()
    return rates


if __name__ == "__main__":
    _, name, place, given = sys.argv
    print(json.dumps(globals()[name](Path(place), **json.loads(given))), flush=True)
