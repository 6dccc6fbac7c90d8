"""The page of guarantees, from what tests did."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.guarantees.matrix import ROWS, STORES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.guarantees.matrix import Row

    Entry = dict[str, Any]

FEW = 3
"""So many tests of one file have a line each in a table of details; more share one."""

INTRODUCTION = """\
# What is guaranteed, and how it was tried

<!-- Written by `make guarantees` from the runs in guarantees.json. Do not edit: run it again. -->

A promise is worth what it has borne. Each row of the first table is a promise and a fault that it has to bear; each cell says what
tests have done to it on one kind of store, in the runs that this page was made of:

- **held** in so many runs: whole plays from beginning to end, and the faults that were injected in them, of whatever kind: processes
  killed, operations failed, connections cut, power lost. A run that proves several promises counts for each of them.
- **broken**: some run failed. It is not hidden here.
- **not tested**: no test tries this fault on this store. It may well hold; nobody has shown it.
- **–**: there is nothing to try, for a reason that stands below the row's own heading.

Faults are real wherever they can be: processes are ended with SIGKILL, servers are restarted, connections are cut by a proxy, and the disk of a
PostgreSQL server is a file system of its own that is filled, frozen, and shut down without a sync when its power goes. A disk below SQLite is
simulated: of a power loss only what was synced is kept, and of the rest an arbitrary part, torn between sectors; under several processes it is
played with several stores of one process, each with connections and locks of its own. A clock is set for one process, not for its machine.
The last column is a cluster in simulated time, where a seed decides when workers are killed, frozen or cut off, answers are lost or late, and
clocks are set.
"""


def page(data: dict[str, Any]) -> str:
    """The whole page."""
    cells: dict[tuple[str, str], list[tuple[str, Entry]]] = defaultdict(list)
    for nodeid, entry in data["tests"].items():
        for row, store in entry["cells"]:
            cells[row, store].append((nodeid, entry))
    made = ", ".join(f"{name} {version}" for name, version in data["made_with"].items())
    lines = [INTRODUCTION, _kills(data["tests"].values()), "", f"The last of the runs was made with {made}.", ""]
    lines += [_line(["Fault", "Promise", *STORES.values()]), _line(["---"] * (2 + len(STORES)))]
    for name, row in ROWS.items():
        summed = [_cell(row, store, [entry for _, entry in cells[name, store]]) for store in STORES]
        lines.append(_line([f"[{row.fault}](#{name})", row.promise, *summed]))
    for name, row in ROWS.items():
        lines += ["", *_section(name, row, {store: cells[name, store] for store in STORES})]
    return "\n".join(lines) + "\n"


def _kills(entries: Iterable[Entry]) -> str:
    kills = sum(entry.get("kills", 0) for entry in entries if not entry["long"])
    return f"`make test` ends {kills:,} processes at work with SIGKILL, and goes on with what they left."


def _line(columns: Iterable[str]) -> str:
    return f"| {' | '.join(columns)} |"


def _cell(row: Row, store: str, entries: list[Entry]) -> str:
    if not entries:
        return "–" if store in row.apart else "not tested"
    failed = sum(not entry["passed"] for entry in entries)
    result = f"**broken** in {failed} of {len(entries)} tests" if failed else "**held**"
    return f"{result}: {_counts(entries)}"


def _counts(entries: list[Entry]) -> str:
    counted = [(sum(entry[what] for entry in entries), what) for what in ("runs", "faults", "seeds")]
    return ", ".join(f"{n:,} {what if n != 1 else what[:-1]}" for n, what in counted if n)


def _section(name: str, row: Row, tried: dict[str, list[tuple[str, Entry]]]) -> Iterator[str]:
    yield f"## {row.fault} {{#{name}}}"
    yield ""
    yield f"{row.promise}."
    for store, why in row.apart.items():
        yield ""
        yield f"{STORES[store]}: nothing to try, for {why}."
    rows = [line for store, tests in tried.items() for line in _tests(store, tests)]
    if rows:
        yield ""
        yield _line(["Store", "Test", "Did", "Result", "Again"])
        yield _line(["---"] * 5)
        yield from rows
    missing = [STORES[store] for store, tests in tried.items() if not tests and store not in row.apart]
    if missing:
        yield ""
        yield f"Not tested: {'; '.join(missing)}."


def _tests(store: str, tests: list[tuple[str, Entry]]) -> Iterator[str]:
    """A line for each test, or for all of a file where it has many."""
    files: dict[tuple[str, bool, int], dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for nodeid, entry in tests:
        file, _, test = nodeid.partition("[")[0].partition("::")
        files[file, entry["long"], entry["seed"]][test].append(entry)
    for (file, long, seed), functions in files.items():
        make = f"make {'test-long' if long else 'test'} SEED={seed}"
        if len(functions) > FEW:
            entries = [entry for some in functions.values() for entry in some]
            names = "; ".join(_said(test) for test in functions)
            again = f"{file} -m 'proves and {'' if long else 'not '}long'"
            yield _tried(store, f"{len(functions)} tests (`{file}`): {names}", entries, f'{make} ARGS="{again}"')
        else:
            for test, entries in functions.items():
                yield _tried(store, f"{_said(test)} (`{file}`)", entries, f'{make} ARGS="{file}::{test}"')


def _said(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def _tried(store: str, what: str, entries: list[Entry], command: str) -> str:
    failed = sum(not entry["passed"] for entry in entries)
    result = f"**broken** in {failed} of {len(entries)}" if failed else "held"
    return _line([STORES[store], what, _counts(entries), result, f"`{command}`"])
