"""Sagas, read models and tasks that a store is full of when it is copied."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from event_workflow_engine import (
    DocumentProjection,
    Saga,
    SagaStep,
    SqlProjection,
    StepContext,
    WorkflowEngine,
    event,
    saga,
    sleep,
    step,
    wait_for_signal,
)
from event_workflow_engine.storage import open_storage
from event_workflow_engine.testing import VirtualClock

if TYPE_CHECKING:
    from event_workflow_engine.projections import Transaction
    from event_workflow_engine.storage.port import HeldStore, Storage

START = VirtualClock().now()


class Stores(Protocol):
    def __call__(self, backend: str) -> str: ...


async def upgraded(url: str) -> Storage:
    """The store with its schema, not entered."""
    async with open_storage(url, auto_upgrade=True):
        pass
    return open_storage(url)


@event("copying-noted")
@dataclass(frozen=True)
class Noted:
    book: str
    text: str


@dataclass
class Notes:
    texts: list[str]


async def book(what: str) -> str:
    return what


async def unbook() -> None: ...


@saga("copied-sleeper")
async def sleeper(what: str) -> str:
    booked = await step(book, what, compensation=unbook)
    await sleep(timedelta(days=30))
    return await step(book, f"{booked}, awake")


@saga("copied-waiter")
async def waiter(what: str) -> str:
    await step(book, what, compensation=unbook)
    return str(await wait_for_signal("go", timeout=timedelta(days=20)))


async def refuse(ctx: StepContext[str]) -> str:
    raise ValueError(f"no {ctx.input}")


undone = Saga("copied-undone", [SagaStep("book", refuse)], input_type=str)


class Life:
    """What of the code ran here."""

    def __init__(self) -> None:
        self.folded: list[str] = []
        self.folded_inline: list[str] = []
        self.reminded = asyncio.Event()
        self.notes = DocumentProjection("copied", Notes)
        self.notes.on(Noted, key=lambda e: e.book)(self._fold)
        self.inline = DocumentProjection("copied-inline", Notes, mode="inline")
        self.inline.on(Noted, key=lambda e: e.book)(self._fold_inline)
        self.lines = SqlProjection("copied-lines", tables={"lines": "book TEXT, text TEXT"})
        self.lines.on(Noted)(self._line)

    def _fold(self, notes: Notes | None, noted: Noted) -> Notes:
        self.folded.append(noted.text)
        return Notes([*(notes.texts if notes is not None else []), noted.text])

    def _fold_inline(self, notes: Notes | None, noted: Noted) -> Notes:
        self.folded_inline.append(noted.text)
        return Notes([*(notes.texts if notes is not None else []), noted.text])

    async def _line(self, tx: Transaction, noted: Noted) -> None:
        await tx.execute("INSERT INTO {lines} VALUES (:book, :text)", book=noted.book, text=noted.text)

    async def remind(self) -> None:
        self.reminded.set()

    def engine(self, storage: Storage | str, *, days: int) -> WorkflowEngine:
        """An engine so many days after the beginning."""
        engine = WorkflowEngine(storage, clock=VirtualClock(START + timedelta(days=days)))
        engine.register(sleeper, waiter, undone)
        engine.projections.register(self.notes, self.inline, self.lines)
        engine.scheduler.register(self.remind, name="remind")
        return engine


class Between:
    """A target through which a test sees, or spoils, what is put."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def __aenter__(self) -> Any:
        await self._storage.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._storage.__aexit__(*exc)

    async def hold(self, work: Any) -> Any:
        async def between(held: HeldStore) -> Any:
            result = await work(_Held(held, self))
            self.before_commit()
            return result

        result = await self._storage.hold(between)
        self.behind_commit()
        return result

    def put(self, _part: str, rows: list[tuple[Any, ...]], /) -> list[tuple[Any, ...]]:
        """The rows that are to be put in the place of these."""
        return rows

    async def at_end(self) -> None:
        """All was put, and each stream and table compared."""

    def before_commit(self) -> None:
        """All was put and compared."""

    def behind_commit(self) -> None:
        """All is there."""


class _Held:
    def __init__(self, held: HeldStore, between: Between) -> None:
        self._held = held
        self._between = between

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)

    async def put(self, part: str, rows: list[tuple[Any, ...]]) -> None:
        await self._held.put(part, self._between.put(part, rows))

    async def end(self) -> int:
        await self._between.at_end()
        return await self._held.end()
