"""A test in processes that are killed: ``crash_everywhere`` with the option ``--crash-kill``.

The test is the program that is killed and started again: it runs in a process that kills itself with SIGKILL at a
durable operation, and then once more, from its first line, in a second process on the same store.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

if TYPE_CHECKING:
    from event_workflow_engine.testing.observed import CrashPoint

__all__ = ["SERVER", "Folder", "KilledPasses", "Outcome", "kill_this_process"]

Outcome = Counter[tuple[str, str]]
"""How many sagas of which name are in which state."""

SERVER: Final = pytest.StashKey[str]()
"""The URL of the PostgreSQL server that this run of pytest uses."""

SERVER_VARIABLE: Final = "EWE_TEST_POSTGRES"
_PATIENCE_S: Final = 600
_LONGEST_OUTPUT: Final = 10_000
_OWN_VARIABLES: Final = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST", "COV_CORE_")


def kill_this_process() -> None:
    """End it at once, as a power cut would, but for what the system has."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


class _Noted(msgspec.Struct):
    operations: int
    sagas: list[tuple[str, str, int]]


class Folder:
    """What outlives a killed process of a test, beside the store itself.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def effects(self) -> Path:
        """The ledger of effects."""
        return self._path / "effects.jsonl"

    def url(self, made: str) -> str:
        """The store's URL: of the process before, or as `made` now."""
        known = self._path / "url"
        if not known.exists():
            known.write_text(made)
        return known.read_text()

    @property
    def file(self) -> Path:
        """The store, where it is a file."""
        return self._path / "engine.db"

    def note(self, operations: int, outcome: Outcome) -> None:
        """The test has ended."""
        sagas = [(saga, state, count) for (saga, state), count in outcome.items()]
        (self._path / "noted.json").write_bytes(msgspec.json.encode(_Noted(operations, sagas)))

    def noted(self) -> tuple[int, Outcome]:
        """Durable operations of the process that ended, and how its sagas ended."""
        noted = msgspec.json.decode((self._path / "noted.json").read_bytes(), type=_Noted)
        return noted.operations, Counter({(saga, state): count for saga, state, count in noted.sagas})


class KilledPasses:
    """Runs a test in other processes.

    Args:
        item: The test.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)}
        server = item.config.stash.get(SERVER, None)
        if server is not None:
            self._environment[SERVER_VARIABLE] = server

    def whole(self) -> tuple[int, Outcome]:
        """Durable operations of the test, and how its sagas end, where nobody kills it.

        Raises:
            AssertionError: It fails there; the text is what it printed.
        """
        with tempfile.TemporaryDirectory() as folder:
            status, said = self._run(folder)
            if status:
                raise AssertionError(said)
            return Folder(Path(folder)).noted()

    def crash(self, point: CrashPoint, expected: Outcome) -> tuple[bool, str]:
        """Kill it there and start it again: whether it was killed, and what is wrong, if anything."""
        with tempfile.TemporaryDirectory() as folder:
            status, said = self._run(folder, f"--crash-at={point}")
            if status == 0:
                return False, ""  # it had fewer operations this time
            if status > 0:
                return False, said
            status, said = self._run(folder)
            if status:
                return True, said
            _, outcome = Folder(Path(folder)).noted()
            return True, "" if outcome == expected else told_apart(outcome, expected)

    def _run(self, folder: str, *options: str) -> tuple[int, str]:
        config = self._item.config
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", f"--crash-folder={folder}"]
        command += [f"--rootdir={config.rootpath}", *options]
        if config.inipath is not None:
            command += ["-c", str(config.inipath)]
        for plugin in config.option.plugins:
            command += ["-p", plugin]
        for ini in config.option.override_ini or ():
            command += ["-o", ini]
        if config.pluginmanager.hasplugin("xdist"):
            command.append("-n0")
        try:
            ran = subprocess.run(  # noqa: S603 - the test that runs here, once more
                [*command, self._item.nodeid],
                cwd=config.rootpath,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 1, f"it did not end within {_PATIENCE_S} s"
        return ran.returncode, (ran.stdout + ran.stderr)[-_LONGEST_OUTPUT:]


def told_apart(outcome: Outcome, expected: Outcome) -> str:
    """That sagas did not end as they did without a crash."""
    return f"the sagas ended otherwise: {_states(outcome)} in place of {_states(expected)}"


def _states(outcome: Outcome) -> str:
    return ", ".join(f"{count} {saga!r} {state}" for (saga, state), count in sorted(outcome.items())) or "no saga"
