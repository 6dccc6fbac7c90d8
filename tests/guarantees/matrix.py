"""What is promised, under which faults, on which stores: the rows and columns of `docs/explanation/guarantees.md`.

A test says with ``@pytest.mark.proves("killed", store="sqlite")`` which cells it tries. A cell without a test is shown as such.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

STORES: Final = {
    "sqlite": "SQLite, one process",
    "sqlite-shared": "SQLite, several processes",
    "postgres": "PostgreSQL",
    "simulated": "Simulated cluster",
}


class Row(NamedTuple):
    """A promise and what it has to bear.

    Attributes:
        fault: What goes wrong.
        promise: What holds all the same.
        apart: Stores where there is nothing to try, and why.
    """

    fault: str
    promise: str
    apart: Mapping[str, str] = MappingProxyType({})


_ALONE: Final = {"sqlite": "there is no other process"}
_FILE: Final = {
    "sqlite": "there is no network between a process and its file",
    "sqlite-shared": "there is no network between a process and its file",
}
_NO_DISK: Final = {"simulated": "its store has no disk"}
_REAL_STORES: Final = {"simulated": "it is a matter of a real store"}

ROWS: Final = {
    "killed": Row(
        "A worker is killed (SIGKILL) before or behind any of its writes",
        "Every accepted saga ends exactly once, as it would have without; a step that is recorded as done never runs again, "
        "one whose record was lost at most once more for each crash",
    ),
    "transactional": Row(
        "A worker is killed within a transactional step",
        "What the step wrote and its record are there together, once",
        _REAL_STORES,
    ),
    "handed-over": Row(
        "One of several workers is killed",
        "Another takes its sagas over, and nobody else's",
        _ALONE,
    ),
    "frozen": Row(
        "A worker stands still (SIGSTOP) beyond its lease, then goes on",
        "What it writes as its old self is refused; nothing completes or is undone twice",
        _ALONE,
    ),
    "doubt": Row(
        "A commit is answered by an error, or not at all",
        "Its unit lands once or not at all, and whoever asks is told which",
    ),
    "store-errors": Row(
        "Calls of the store fail: each once, some for a while",
        "A typed error, or it landed; nothing acknowledged is lost, and work goes on afterwards",
    ),
    "database-killed": Row(
        "The database is killed (SIGKILL) or restarted, or its connections are",
        "What was acknowledged is there; sagas go on and end once",
        {"sqlite": "it has no server", "sqlite-shared": "it has no server"},
    ),
    "failover": Row(
        "Another server takes the place of a killed one",
        "On a synchronous standby nothing acknowledged is lost; on another, whoever saw what is lost is told",
        {**_NO_DISK, "sqlite": "it has no server", "sqlite-shared": "it has no server"},
    ),
    "power": Row(
        "The power goes at any moment, and with it what was not synced",
        "What was acknowledged is on disk, the database is whole, every accepted saga ends once",
        _NO_DISK,
    ),
    "sync-fails": Row(
        "The disk fails at any sync, write, truncation, creation or deletion, once or for a while",
        "A typed error, or it landed; a line in the log; what was acknowledged is on disk, also over a later power loss",
        _NO_DISK,
    ),
    "disk-full": Row(
        "The disk is full at any write",
        "A typed error that says so; what was acknowledged stays, and work goes on when there is room",
        _NO_DISK,
    ),
    "disk-hangs": Row(
        "A sync hangs",
        "Nothing is acknowledged before its time, reads answer, callers wait in line or may leave, and all goes on afterwards",
        _NO_DISK,
    ),
    "partition": Row(
        "A worker is cut off from its store: connections hang or are reset, one way or both",
        "It begins nothing that others may have taken over, they go on, and it comes back without repeating anything",
        _FILE,
    ),
    "clock": Row(
        "The wall clock of a worker is set, or runs away from the others",
        "No timer fires early by time that has passed, no schedule fires a slot twice, nobody is taken for dead for it",
    ),
    "one-winner": Row(
        "The same saga is started, a stream appended to, or a place taken by many at once",
        "There is one winner, and the others are told",
    ),
    "no-gap": Row(
        "Slow commits overtake one another while the log is read",
        "A reader at the tail misses no event, sees none twice, and has each stream in order",
    ),
    "projected-once": Row(
        "Whoever keeps projections or subscriptions is killed",
        "Each event is in a projection once; a durable subscriber gets each at least once, in order",
    ),
    "broker": Row(
        "A message broker dies, redelivers, reorders or sends poison",
        "Out at least once, in effectively once, poison is parked",
        dict.fromkeys(STORES, "the library has no adapter for a broker yet"),
    ),
    "old-history": Row(
        "New code meets histories that older versions wrote, or that changed sagas do not fit",
        "Old histories go on and end as they would have; what does not fit is parked and named, never guessed",
        {"sqlite-shared": "a history is read by one process", **_REAL_STORES},
    ),
    "migration": Row(
        "A schema's migration is cut short: the process is killed, or the power goes",
        "The next one finds the old schema or the new one, with all data, and goes on",
        {**_REAL_STORES, "sqlite-shared": "one process migrates, under the lock of the file"},
    ),
    "copied": Row(
        "A process that copies a store to another is killed",
        "The target has all of it, or nothing and can be copied to again",
        {**_REAL_STORES, "sqlite-shared": "nobody else may be at the store meanwhile"},
    ),
    "compensation": Row(
        "Steps fail, time out or are cut off; compensations fail, for a while or for good",
        "What was done, or may have been, is undone in reverse; a rollback that cannot go on stands visibly and can be resumed",
    ),
    "limits": Row(
        "Large payloads, long histories, many timers, slow consumers",
        "Memory stays bounded, and limits are typed errors",
        {"simulated": "nothing is large in it"},
    ),
}  # fmt: skip
