"""Real crashes, cheaply: a server process forks a worker for each job, and the worker kills itself where it was told.

The server has imported everything and has no threads, so a crash costs milliseconds instead of an interpreter's start,
and is as real as any. Nothing but a forked worker can be killed from here: not the server, nor whoever runs the tests.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from event_workflow_engine.storage.port import SqlSession, Storage, Told, Unit

    Work = Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
LIMIT_S = 20
"""A worker that hangs ends itself before pytest's own limit, which would end the process that runs the tests."""


class _Forked:
    """The process that may be killed: set in a worker, by the worker, once it was forked."""

    pid: int | None = None


def die() -> NoReturn:
    """Kill this process, if it is a forked worker."""
    if os.getpid() != _Forked.pid:
        raise RuntimeError("only a worker that was forked for it may be killed")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class KillingStorage:
    """A store that counts what is written, and kills the process before, within or behind one of these writes.

    Attributes:
        sent: Writes that were begun.
        ran: Transactions whose work has run, which are not yet committed.
        landed: Writes that are on disk.
    """

    def __init__(self, storage: Storage, when: str, at: int) -> None:
        self._storage = storage
        self._when = when
        self._at = at
        self.sent = 0
        self.ran = 0
        self.landed = 0
        storage.add_commit_hook(lambda batch: self._landing(len(batch)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def _sending(self) -> None:
        self.sent += 1
        if self._when == "before" and self.sent == self._at:
            die()

    def _running(self) -> None:
        self.ran += 1
        if self._when == "within" and self.ran == self._at:
            die()

    def _landing(self, writes: int) -> None:
        self.landed += writes
        if self._when == "behind" and self.landed >= self._at > 0:
            die()

    def arm_within(self) -> None:
        """Kill the process within the next exclusive transaction."""
        self._when, self._at = "within", self.ran + 1

    @property
    def counts(self) -> dict[str, int]:
        """How many points there are to kill at, by the name of their kind."""
        return {"before": self.sent, "within": self.ran, "behind": self.landed}

    def post(self, unit: Unit, told: Told) -> None:
        self._sending()
        self._storage.post(unit, told)

    async def write(self, unit: Unit) -> Any:
        self._sending()
        return await self._storage.write(unit)

    async def exclusive(self, unit: Unit, work: Callable[[SqlSession], Awaitable[None]]) -> Any:
        async def run(session: SqlSession) -> None:
            await work(session)
            self._running()

        self._sending()
        return await self._storage.exclusive(unit, run)

    async def transact(self, work: Callable[[SqlSession], Awaitable[Unit]]) -> Any:
        async def run(session: SqlSession) -> Unit:
            unit = await work(session)
            self._running()
            return unit

        self._sending()
        return await self._storage.transact(run)

    async def perform(self, name: str, **params: Any) -> Any:
        self._sending()
        rows = await self._storage.perform(name, **params)
        self._landing(1)  # commit hooks tell of units only
        return rows


def _run_forked(work: Work, job: dict[str, Any]) -> NoReturn:
    _Forked.pid = os.getpid()
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    try:
        ended = asyncio.run(work(job))
        Path(job["out"]).write_text(json.dumps(ended))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def serve(work: Work) -> None:
    """Be the server: fork a worker for each line that is read, and write its exit code when it has ended."""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run_forked(work, json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


class WorkerFactory:
    """Runs workers in processes of their own: the test's side of `serve`.

    Args:
        module: The module that serves, as ``python -m`` takes it.
    """

    def __init__(self, module: str) -> None:
        self._out = Path()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, place: Path, when: str = "never", at: int = 0, **job: Any) -> None:
        """Have a worker forked. It works on the file ``s.db`` in `place`, or on the store at ``url`` in `job`."""
        place.mkdir(exist_ok=True)
        self._out = place / f"{self._process.pid}.json"
        self._out.unlink(missing_ok=True)
        job = {"url": f"sqlite:///{place}/s.db", **job, "out": str(self._out), "when": when, "at": at}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def ended(self) -> tuple[int, dict[str, Any]]:
        """Wait for the worker: its exit code, and what it says when it lived."""
        assert self._process.stdout is not None
        code = self._process.stdout.readline()
        assert code, "the server of workers ended"
        return int(code), json.loads(self._out.read_text()) if self._out.exists() else {}

    def run(self, place: Path, when: str = "never", at: int = 0, **job: Any) -> tuple[int, dict[str, Any]]:
        """Start a worker and wait for it."""
        self.start(place, when, at, **job)
        return self.ended()

    def close(self) -> None:
        """End the server."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(LIMIT_S + 5)
        if self._process.stdout is not None:
            self._process.stdout.close()


class WorkerFactories:
    """Several plays at once, each with a server of workers that is its own meanwhile: most of a play is waiting.

    Args:
        module: See `WorkerFactory`.
        most: So many at once.
    """

    def __init__(self, module: str, most: int = 3) -> None:
        self._module = module
        self._most = most
        self._idle: list[WorkerFactory] = []

    async def play(self, plays: Iterable[Callable[[WorkerFactory], Coroutine[Any, Any, T]]]) -> list[T]:
        """Play them all; what they return, in order."""
        turns = asyncio.Semaphore(self._most)

        async def one(play: Callable[[WorkerFactory], Coroutine[Any, Any, T]]) -> T:
            async with turns:
                factory = self._idle.pop() if self._idle else WorkerFactory(self._module)
                try:
                    return await play(factory)
                finally:
                    self._idle.append(factory)

        async with asyncio.TaskGroup() as playing:
            tasks = [playing.create_task(one(play)) for play in plays]
        return [task.result() for task in tasks]

    def close(self) -> None:
        """End the servers."""
        for factory in self._idle:
            factory.close()
