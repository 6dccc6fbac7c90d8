"""`ewe run`: sagas, one or many, and what an operator says to them."""

import time
from contextlib import closing
from typing import Annotated, Any, Final

import msgspec
from cyclopts import App, Parameter
from rich.console import Group
from rich.text import Text

from event_workflow_engine import history as h
from event_workflow_engine._saga.specs import check_name
from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common, Limit
from event_workflow_engine.cli.output import (
    cell,
    console,
    event_as_plain,
    print_json,
    print_rows,
    short_time,
    state_cell,
    table,
    time_of,
)
from event_workflow_engine.cli.signal_types import check_payload
from event_workflow_engine.cli.timeline import StepLine, detail_of, steps_of
from event_workflow_engine.errors import SagaEndedError, SagaNotFoundError
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import RecordedEvent
from event_workflow_engine.feeds import Bell
from event_workflow_engine.inbox import send
from event_workflow_engine.journal import saga_stream
from event_workflow_engine.queues import queue_of
from event_workflow_engine.state_machine import WorkflowState
from event_workflow_engine.storage.port import Storage
from event_workflow_engine.storage.tables import GIVEN
from event_workflow_engine.waiting import living, short_journal, waits_of
from event_workflow_engine.waits import Wait, first_waits, read_waits, said

__all__ = ["app"]

app: Final = App(name="run", help="Sagas: list them, look at one, speak to one.")


def _is_json(_: object, value: str | None) -> None:
    """A validator: tell at the command line, before anything is sent."""
    if value is not None:
        try:
            msgspec.json.decode(value.encode())
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise ValueError(f"it is no JSON ({error}); text needs quotes: '\"yes\"'") from None


Id = Annotated[str, Parameter(help="The saga's id.")]
JsonText = Annotated[str | None, Parameter(help="What goes with it, as JSON.", validator=_is_json)]


@app.command(name="list")
async def list_(  # noqa: D417 - shared options tell of themselves
    *,
    state: WorkflowState | None = None,
    saga: str | None = None,
    after: str = "",
    limit: Limit = 50,
    common: Common = COMMON,
) -> None:
    """List sagas by id, a page at a time.

    Args:
        state: Only those in this state.
        saga: Only those of the definition with this name.
        after: Only those behind this id: the `next` of the page before.
    """
    async with opened(common.url) as storage:
        found = await storage.query(
            "sagas_page", state=None if state is None else state.value, saga=saga, after=after, limit=limit + 1
        )
        page, more = found[:limit], len(found) > limit
        now, workers = time.time_ns() // 1000, await living(storage)
        waits = [
            first_waits(await waits_of(storage, row, now, workers, facts=await short_journal(storage, row)))
            for row in page
        ]
    last = page[-1]["id"] if more else None
    if common.as_json:
        rows = [_plain_row(row, waited) for row, waited in zip(page, waits, strict=True)]
        print_json({"sagas": rows, "next": last})
        return
    print_rows(
        ("id", "saga", "state", "started", "ended", "waits for"),
        [
            (
                cell(row["id"]),
                cell(f"{row['saga']} v{row['saga_version']}"),
                state_cell(row["state"]),
                cell(short_time(row["started_at"]), "dim"),
                cell(short_time(row["ended_at"]), "dim"),
                cell("; ".join(map(said, waited))),
            )
            for row, waited in zip(page, waits, strict=True)
        ],
    )
    if last is not None:
        console().print(cell(f"more: --after {last}", "dim"))


@app.command(name="show")
async def show(id: Id, /, *, common: Common = COMMON) -> None:  # noqa: A002 - what it is
    """Show one saga: what it waits for or does, its steps with attempts and compensations; with --json its history."""
    async with opened(common.url) as storage:
        row = await _row(storage, id)
        events = [event async for event in EventStore(storage).read(saga_stream(id))]
        facts = [event.data for event in events]
        waits = await waits_of(storage, row, time.time_ns() // 1000, await living(storage), facts=facts)
    steps = steps_of(events)
    if common.as_json:
        history = [event_as_plain(event) for event in events]
        print_json({**_plain_row(row, waits), "steps": [step.as_plain() for step in steps], "history": history})
        return
    console().print(_shown(row, events, steps, waits))


@app.command(name="watch")
async def watch(id: Id, /, *, common: Common = COMMON) -> None:  # noqa: A002 - what it is
    """Follow a saga's history until it has ended, or stands and needs a decision."""
    async with opened(common.url) as storage:
        store = EventStore(storage)
        began = (await _row(storage, id))["started_at"]
        seen = 0
        with closing(Bell(storage)) as bell:
            while True:
                # The row before the events: where it has ended, its last event is among them.
                row = await _row(storage, id)
                async for event in store.read(saga_stream(id), after=seen):
                    _tell(event, began, as_json=common.as_json)
                    seen = event.version
                stands = row["state"] == WorkflowState.NEEDS_INTERVENTION.value
                if row["ended_at"] is not None or stands:
                    break
                await bell.wait()
    if not common.as_json:
        said = " stands: " if stands else " has ended: "
        console().print(Text.assemble("saga ", cell(id, "bold"), said, state_cell(row["state"])))


@app.command(name="signal")
async def signal(  # noqa: D417 - shared options tell of themselves
    id: Id,  # noqa: A002 - what it is
    name: str,
    payload: JsonText = None,
    /,
    *,
    app: Annotated[str | None, Parameter(name="--app")] = None,
    common: Common = COMMON,
) -> None:
    """Send a signal to a saga. It waits for a saga that does not wait for it yet.

    JSON that is not of the signal's type is raised in the saga's code as a DecodeError. Where the code does not catch
    it, the saga is undone. With --app it is refused instead, and nothing is sent.

    Args:
        name: The signal's name.
        app: Check it first: where the Signal is, `module:object`, or its `module`, or what stands beside it there.
    """
    check_name(name, "signal name")
    raw = h.Raw(b"null" if payload is None else payload.encode())
    if app is not None:
        check_payload(name, raw, app)
    async with opened(common.url) as storage:
        row = await storage.get("sagas", (id,))
    awaited = {wait.name for wait in read_waits(row) if wait.kind == "signal"} if row is not None else set()
    sent = f"signal {name!r} sent" + ("" if app is not None else " unchecked (--app checks its type)")
    if awaited and name not in awaited:
        sent += f", for which it does not wait now: it waits for {', '.join(map(repr, sorted(awaited)))}"
    await _send(id, h.SignalSent(name, raw), common, {"id": id, "signal": name, "sent": True}, sent)


@app.command(name="cancel")
async def cancel(id: Id, /, *, reason: str = "", common: Common = COMMON) -> None:  # noqa: D417, A002 - what it is
    """Ask a saga to end: what it did is undone.

    Args:
        reason: Why; it is kept in the saga's history.
    """
    await _send(id, h.CancelSent(reason), common, {"id": id, "cancel": reason, "sent": True}, "cancel requested")


@app.command(name="pause")
async def pause(id: Id, /, *, reason: str = "", common: Common = COMMON) -> None:  # noqa: D417, A002 - what it is
    """Let a saga start nothing new until it is resumed; what runs may end.

    Args:
        reason: Why; it is kept in the saga's history.
    """
    await _send(id, h.PauseSent(reason), common, {"id": id, "pause": reason, "sent": True}, "pause requested")


@app.command(name="resume")
async def resume(id: Id, /, *, common: Common = COMMON) -> None:  # noqa: A002 - what it is
    """Let a paused saga go on, or have one that NEEDS_INTERVENTION tried again."""
    await _send(id, h.ResumeSent(), common, {"id": id, "resume": True, "sent": True}, "resume requested")


async def _send(saga_id: str, entry: h.InboxEntry, common: Common, done: dict[str, Any], said: str) -> None:
    async with opened(common.url) as storage:
        try:
            await send(storage, saga_id, entry, time.time_ns() // 1000)
        except (SagaNotFoundError, SagaEndedError) as error:
            raise type(error)(f"{error}: see ewe run list") from None
    if common.as_json:
        print_json(done)
    else:
        console().print(cell(f"saga {saga_id}: {said}; see: ewe run watch {saga_id}"))


async def _row(storage: Storage, saga_id: str) -> dict[str, Any]:
    row = await storage.get("sagas", (saga_id,))
    if row is None:
        raise SagaNotFoundError(f"there is no saga {saga_id!r} in {storage.url}: see ewe run list")
    return row


def _plain_row(row: dict[str, Any], waits: list[Wait]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "saga": row["saga"],
        "version": row["saga_version"],
        "state": row["state"],
        "started_at": time_of(row["started_at"]) or None,
        "ended_at": time_of(row["ended_at"]) or None,
        "wake_at": time_of(row["wake_at"]) or None,
        "owner": row["owner"] or None,
        "fence": row["fence"],
        "waits_for": [_plain_wait(wait) for wait in waits],
    }


def _plain_wait(wait: Wait) -> dict[str, Any]:
    at = None if wait.at is None else wait.at.isoformat(timespec="milliseconds")
    child = {"saga": wait.saga, "state": wait.state} if wait.kind == "child" else {}
    return {"kind": wait.kind, "name": wait.name or None, "number": wait.number, "at": at, **child, "said": said(wait)}


def _tell(event: RecordedEvent[Any], began: int, *, as_json: bool) -> None:
    if as_json:
        print_json(event_as_plain(event))
        return
    offset = event.recorded_at.timestamp() - began / 1_000_000
    line = Text.assemble(
        (f"{offset:+9.3f} s  ", "dim"), cell(f"{event.type:<24}", _style(event.type)), cell(detail_of(event.data))
    )
    console().print(line, soft_wrap=True)


def _style(event_type: str) -> str:
    if event_type.endswith(("-failed", "-unknown")) or event_type in ("intervention-needed", "cancel-requested"):
        return "red"
    if event_type.startswith("compensation-") or event_type in ("rollback-planned", "saga-compensated"):
        return "yellow"
    return "green" if event_type in ("saga-completed", "step-succeeded") else ""


# -- showing one -----------------------------------------------------------------------------------------------------


def _shown(row: dict[str, Any], events: list[RecordedEvent[Any]], steps: list[StepLine], waits: list[Wait]) -> Group:
    head = Text.assemble(
        cell(row["id"], "bold"), "  ", cell(f"{row['saga']} v{row['saga_version']}"), "  ", state_cell(row["state"])
    )
    times = f"started {short_time(row['started_at'], decimals=3)}"
    if row["ended_at"] is not None:
        times += f", ended {short_time(row['ended_at'], decimals=3)}"
    elif (owner := row["owner"]) and queue_of(owner) is None:
        how = "given to" if owner.startswith(GIVEN) else "on"
        times += f", {how} worker {owner.removeprefix(GIVEN)}"
    elif row["wake_at"] is not None:
        times += f", due {short_time(row['wake_at'], decimals=3)}"
    made = table("step", "state", "tries", "begins", "takes", "undo", numbers=("tries", "begins", "takes"))
    for step in steps:
        made.add_row(*_step_cells(step, row["started_at"]))
    parts: list[Any] = [head, cell(times, "dim"), *(cell(said(wait)) for wait in waits), Text(), made]
    troubles = [event for event in events if isinstance(event.data, h.SagaFailed | h.InterventionNeeded)]
    parts += [Text.assemble((f"{event.type}: ", "red"), cell(detail_of(event.data))) for event in troubles]
    for step in steps:
        for what, error in (("", step.error), ("undoing ", step.undo_error)):
            if error:
                parts.append(Text.assemble((what, "red"), cell(step.step, "bold"), ": ", cell(error, "red")))
    return Group(*parts)


_STEP_STYLES: Final = {"succeeded": "green", "failed": "red", "unknown": "bold red", "undone": "yellow"}


def _step_cells(step: StepLine, began: int) -> list[Text]:
    tries = str(step.attempts) if step.attempts else "-"
    begins = takes = ""
    if step.started_at is not None:
        begins = f"{step.started_at.timestamp() - began / 1_000_000:+.3f} s"
        if step.ended_at is not None:
            takes = f"{(step.ended_at - step.started_at).total_seconds():.3f} s"
    undo = f"{step.undo} ({step.undo_attempts} tries)" if step.undo_attempts > 1 else step.undo
    return [
        cell(step.step),
        cell(step.state, _STEP_STYLES.get(step.state, "cyan")),
        cell(tries),
        cell(begins, "dim"),
        cell(takes, "dim"),
        cell(undo, _STEP_STYLES.get(step.undo, "")),
    ]
