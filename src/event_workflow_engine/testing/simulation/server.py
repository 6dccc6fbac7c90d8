"""A simulated database server that several processes share, and each one's storage over its link to it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from event_workflow_engine.errors import DefinitionError, StorageUnavailableError
from event_workflow_engine.storage.liveness import HeartbeatLiveness
from event_workflow_engine.storage.memory.queries import CLAIM_FUNCTIONS
from event_workflow_engine.storage.memory.state import MemoryState
from event_workflow_engine.storage.memory.storage import MemoryStorage
from event_workflow_engine.storage.port import RINGING_CLAIMS, Written
from event_workflow_engine.storage.row_images import SHAPES
from event_workflow_engine.testing.simulation.faults import PATIENCE_S
from event_workflow_engine.testing.simulation.loop import WORLD

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from event_workflow_engine.storage.group_commit import Verdict
    from event_workflow_engine.storage.liveness import Liveness
    from event_workflow_engine.storage.port import Record, Rows, Unit
    from event_workflow_engine.storage.row_images import Image, Key
    from event_workflow_engine.testing.simulation.faults import Link
    from event_workflow_engine.testing.simulation.loop import Process, SimulatedLoop

__all__ = ["SimulatedServer", "SimulatedStorage"]

T = TypeVar("T")

_LOOKS_A_LEASE: Final = 4
_LATEST_S: Final = 5.0
_QUIET: Final = frozenset({"claim_saga", "claim_sagas"})


class SimulatedServer:
    """The log and the rows. What arrives is done whole, one after the other.

    Args:
        loop: In whose time.

    Attributes:
        state: All that is committed.
        watchers: Told of each unit that is about to be committed, and of each that was.
        lives: How often it was restarted.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.state = _ServerState()
        self.watchers: list[Watcher] = []
        self.storages: list[SimulatedStorage] = []
        self.lives = 0

    def commit(self, units: Sequence[Unit], origin: SimulatedStorage) -> list[Verdict]:
        """Write a batch."""
        verdicts: list[Verdict] = []
        for unit in units:
            for watcher in self.watchers:
                watcher.before(unit)
            verdict = self.state.attempt(unit)
            if isinstance(verdict, Written):
                for watcher in self.watchers:
                    watcher.written(unit)
            verdicts.append(verdict)
        if any(isinstance(verdict, Written) for verdict in verdicts):
            self.ring(origin)
        return verdicts

    def claim(self, name: str, params: Mapping[str, Any], origin: SimulatedStorage) -> Rows:
        """Make a claim."""
        rows = CLAIM_FUNCTIONS[name](self.state, **params)
        if (rows or name in RINGING_CLAIMS) and name not in _QUIET:
            self.ring(origin)
        return rows

    def restart(self, seconds: float) -> None:
        """It is killed, and away for so long. What is on its way is lost, in both directions; what it holds is not."""
        self.lives += 1
        until = self.loop.now + seconds
        for storage in self.storages:
            storage.cut_off(until)

    def ring(self, origin: SimulatedStorage) -> None:
        """Let the other processes know that something was committed."""
        for storage in self.storages:
            if storage is not origin:
                storage.hear()


class _ServerState(MemoryState):
    """Looked at far more often than it changes, so it takes each row apart once."""

    def __init__(self) -> None:
        super().__init__()
        self._apart: dict[tuple[str, Key], tuple[Image, dict[str, Any]]] = {}

    def rows(self, table: str) -> list[dict[str, Any]]:
        """See `MemoryState.rows`."""
        images, apart, rows = self.tables[table], self._apart, []
        for key in sorted(images):
            image = images[key]
            known = apart.get((table, key))
            if known is None or known[0] is not image:
                known = apart[table, key] = image, SHAPES[table].as_dict(image)
            rows.append(known[1].copy())
        return rows


class Watcher:
    """Looks at what is committed. The base does nothing."""

    def before(self, unit: Unit) -> None:
        """It is about to be tried."""

    def written(self, unit: Unit) -> None:
        """It was written."""


class SimulatedStorage(MemoryStorage):
    """A store of one process: what the memory store does, over a network, in a state that others change too.

    Args:
        server: Which server.
        process: Whose it is.
        link: The way there.
    """

    def __init__(self, server: SimulatedServer, process: Process, link: Link) -> None:
        # Not the memory store's own: it opens a database for SQL, and a simulated store runs none.
        super(MemoryStorage, self).__init__("simulated://server")
        self.state = server.state
        self.worker = ""
        self._server = server
        self.process = process
        self._link = link
        self._loop = server.loop

    def liveness(self, lease: float) -> Liveness:
        """Heartbeats, and looks that are rare enough for a simulation to be quick."""
        made = _NotedLiveness(self, lease, self._loop.time)
        made.look_every = lease / _LOOKS_A_LEASE
        return made

    async def _open(self) -> None:
        await self._ask(lambda: None)
        self._server.storages.append(self)
        self._start(self._execute, answers_later=True)

    async def _close(self) -> None:
        self._server.storages.remove(self)

    def gone(self) -> None:
        """Its process was killed."""
        if self in self._server.storages:
            self._server.storages.remove(self)

    def cut_off(self, until: float) -> None:
        """The server answers again at that time; whoever connects anew looks whether it missed anything."""
        self._link.cut_until = max(self._link.cut_until, until)
        self._loop.later(self._link.cut_until - self._loop.now, self.process, self._listeners.ring)

    def hear(self) -> None:
        """Another process has committed something."""
        link = self._link
        delay = link.latency()
        if link.happens(link.weather.late_bell):
            delay += link.between(0.2, _LATEST_S)
        self._loop.later(max(delay, link.cut_until - self._loop.now), self.process, self._listeners.ring)

    # -- messages ------------------------------------------------------------------------------------------------

    def _send(self, work: Callable[[], T], told: Callable[[T | Exception], None], *, commits: bool) -> None:
        """Have the server do something; `told` is called in this process, with its result or why there is none."""
        link, loop, life = self._link, self._loop, self._server.lives
        there, back = link.latency(), link.latency()
        if commits:
            there += link.between(0, link.weather.fsync)
        if link.cut_until > loop.now:
            if link.cut_until - loop.now > PATIENCE_S:
                loop.later(PATIENCE_S, self.process, told, _unreachable("no answer in time"))
                return
            there += link.cut_until - loop.now
        fate = link.fate(commits=commits)
        if fate == "arrives":
            loop.later(there, WORLD, self._arrived, work, told, back, life)
        elif fate == "slow":
            loop.later(there, WORLD, self._arrived, work, told, back + link.between(0, _LATEST_S), life)
        elif fate == "refused":
            loop.later(there, self.process, told, _unreachable("refused"))
        elif fate == "lost":
            loop.later(there, WORLD, self._quietly, work, life)
            loop.later(there + back, self.process, told, _unreachable("the answer was lost"))
        else:
            loop.later(there + link.between(0, _LATEST_S), WORLD, self._quietly, work, life)
            loop.later(there, self.process, told, _unreachable("the answer was lost"))

    def _arrived(self, work: Callable[[], T], told: Callable[[T | Exception], None], back: float, life: int) -> None:
        if life != self._server.lives:
            self._loop.later(back, self.process, told, _unreachable("the server was restarted"))
            return
        try:
            answer: T | Exception = work()
        except Exception as error:  # noqa: BLE001 - the answer
            answer = error
        # A cut that has begun meanwhile holds the answer back, too.
        left = self._link.cut_until - self._loop.now
        self._loop.later(max(back, left), self.process, self._answered, told, answer, life)

    def _answered(self, told: Callable[[T | Exception], None], answer: T | Exception, life: int) -> None:
        told(answer if life == self._server.lives else _unreachable("the server was restarted"))

    def _quietly(self, work: Callable[[], object], life: int) -> None:
        """Do what nobody is told of."""
        if life == self._server.lives:
            with suppress(Exception):
                work()

    def _ask(self, work: Callable[[], T], *, commits: bool = False) -> asyncio.Future[T]:
        reply: asyncio.Future[T] = self._loop.create_future()
        self._send(work, partial(_told, reply), commits=commits)
        return reply

    def _read(self, read: Callable[..., Coroutine[Any, Any, T]], *wanted: Any, **named: Any) -> asyncio.Future[T]:
        """What a read of the memory store finds when it arrives."""
        self._require_open()
        return self._ask(partial(_at_once, read, *wanted, **named))

    # -- writing -------------------------------------------------------------------------------------------------

    def _execute(self, units: list[Unit], done: Callable[[Sequence[Verdict]], None]) -> None:
        def told(answer: list[Verdict] | Exception) -> None:
            done([answer] * len(units) if isinstance(answer, Exception) else answer)

        self._send(partial(self._server.commit, units, self), told, commits=True)

    def _claim(self, name: str, params: Mapping[str, Any]) -> asyncio.Future[Rows]:  # type: ignore[override]
        return self._ask(partial(self._server.claim, name, params, self), commits=True)

    def _transaction(self) -> Any:
        raise DefinitionError("a simulated store runs no SQL")

    def _holding(self) -> Any:
        raise DefinitionError("a simulated store is not held")

    # -- reading -------------------------------------------------------------------------------------------------

    async def outcome(self, unit_id: str) -> Written | None:
        """See `Storage.outcome`."""
        await self._committer.settled(unit_id)
        return await self._ask(partial(self.state.outcome, unit_id))

    async def head(self, stream: str) -> int:
        """See `Storage.head`."""
        return await self._ask(partial(self.state.head, stream))

    async def last_position(self) -> int:
        """See `Storage.last_position`."""
        return await self._ask(self.state.last_position)

    async def read_stream(self, stream: str, **wanted: Any) -> list[Record]:
        """See `Storage.read_stream`."""
        return await self._read(super().read_stream, stream, **wanted)

    async def read_streams(self, streams: Sequence[str]) -> list[Record]:
        """See `Storage.read_streams`."""
        return await self._read(super().read_streams, streams)

    async def read_log(self, **wanted: Any) -> list[Record]:
        """See `Storage.read_log`."""
        return await self._read(super().read_log, **wanted)

    async def get(self, table: str, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """See `Storage.get`."""
        return await self._read(super().get, table, key)

    async def query(self, name: str, /, **params: Any) -> Rows:
        """See `Storage.query`."""
        return await self._read(super().query, name, **params)


class _NotedLiveness(HeartbeatLiveness):
    """Notes which worker a storage's process is."""

    def __init__(self, storage: SimulatedStorage, lease: float, time: Callable[[], float]) -> None:
        super().__init__(lease, time)
        self._storage = storage

    def hold(self, worker: str) -> None:
        super().hold(worker)
        self._storage.worker = worker


def _unreachable(why: str) -> StorageUnavailableError:
    return StorageUnavailableError(f"simulated: {why}")


def _told(reply: asyncio.Future[T], answer: T | Exception) -> None:
    if reply.done():
        return
    if isinstance(answer, Exception):
        reply.set_exception(answer)
    else:
        reply.set_result(answer)


def _at_once(read: Callable[..., Coroutine[Any, Any, T]], *wanted: Any, **named: Any) -> T:
    """What a coroutine function returns that waits for nothing."""
    try:
        read(*wanted, **named).send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("a read of the memory store waited for something")
