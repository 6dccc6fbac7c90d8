"""`ewe stream`: the log, by stream or as it grows."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from rich.text import Text

from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common, Count, Limit, MaybePlace, Place
from event_workflow_engine.cli.output import as_json as json_text
from event_workflow_engine.cli.output import (
    cell,
    console,
    event_as_plain,
    plain,
    print_json,
    print_rows,
    short_time,
    time_of,
)
from event_workflow_engine.clock import told
from event_workflow_engine.errors import NotRegisteredError
from event_workflow_engine.event_store import EventStore
from event_workflow_engine.events import RecordedEvent
from event_workflow_engine.feeds import Bell

__all__ = ["app"]

app: Final = App(name="stream", help="The log: its streams and their events.")


@app.command(name="ls")
async def ls(prefix: str = "", /, *, after: str = "", limit: Limit = 50, common: Common = COMMON) -> None:  # noqa: D417 - shared options tell of themselves
    """List streams by name, a page at a time.

    Args:
        prefix: Only those whose name begins so, e.g. `order-`.
        after: Only those behind this name: the `next` of the page before.
    """
    async with opened(common.url) as storage:
        found = await storage.query("streams_page", prefix=prefix, after=after, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    last = page[-1]["stream"] if more else None
    if common.as_json:
        streams = [{**row, "last_at": time_of(row["last_at"]) or None} for row in page]
        print_json({"streams": streams, "next": last})
        return
    rows = [(cell(row["stream"]), cell(row["events"]), cell(short_time(row["last_at"]), "dim")) for row in page]
    print_rows(("stream", "events", "last"), rows, numbers=("events",))
    if last is not None:
        console().print(cell(f"more: --after {last}", "dim"))


@app.command(name="show")
async def show(  # noqa: D417 - shared options tell of themselves
    stream: str,
    /,
    *,
    after: Place = 0,
    limit: Limit = 100,
    backwards: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> None:
    """Show a stream's events, a page at a time.

    Args:
        stream: The stream's name.
        after: Only those behind this version; backwards, below it: the `next` of the page before.
        backwards: The last first.
    """
    async with opened(common.url) as storage:
        store = EventStore(storage)
        found = [event async for event in store.read(stream, after=after, limit=limit + 1, backwards=backwards)]
        if not found and not await store.head(stream):
            raise NotRegisteredError(f"there is no stream {stream!r} in {storage.url}: see ewe stream ls")
    page, more = found[:limit], len(found) > limit
    last = page[-1].version if more else None
    if common.as_json:
        print_json({"stream": stream, "events": [event_as_plain(event) for event in page], "next": last})
        return
    rows = [
        (
            cell(event.version),
            cell(told(event.recorded_at), "dim"),
            cell(event.type, "bold"),
            cell(json_text(plain(event.data))),
        )
        for event in page
    ]
    print_rows(("version", "recorded", "type", "data"), rows, numbers=("version",))
    if last is not None:
        console().print(cell(f"more: --after {last}", "dim"))


@app.command(name="tail")
async def tail(  # noqa: D417 - shared options tell of themselves
    stream: str | None = None,
    /,
    *,
    type: Annotated[tuple[str, ...], Parameter(name="--type", negative="")] = (),  # noqa: A002 - what it is
    category: Annotated[tuple[str, ...], Parameter(name="--category", negative="")] = (),
    after: MaybePlace = None,
    limit: Count = None,
    common: Common = COMMON,
) -> None:
    """Follow the log, or one stream, as it grows; until interrupted, or until so many events were told.

    Args:
        stream: Only this stream.
        type: Only events of this type; may be given several times.
        category: Only streams of this category (their name up to its first `-`); may be given several times.
        after: Begin behind this position (of one stream: version); by default with what comes next.
    """
    told = 0
    async with opened(common.url) as storage:
        store = EventStore(storage)
        if stream is None:
            events = store.follow(after="end" if after is None else after, types=type, categories=category)
        else:
            events = _of_one(store, stream, after, set(type))
        async with aclosing(events):
            async for event in events:
                _tell(event, as_json=common.as_json)
                told += 1
                if told == limit:
                    return


async def _of_one(
    store: EventStore, stream: str, after: int | None, types: set[str]
) -> AsyncGenerator[RecordedEvent[Any], None]:
    with closing(Bell(store.storage)) as bell:
        seen = await store.head(stream) if after is None else after
        while True:
            async for event in store.read(stream, after=seen):
                seen = event.version
                if not types or event.type in types:
                    yield event
            await bell.wait()


def _tell(event: RecordedEvent[Any], *, as_json: bool) -> None:
    if as_json:
        print_json(event_as_plain(event))
        return
    line = Text.assemble(
        (f"{event.position:>8}  ", "dim"),
        cell(f"{event.stream} @{event.version}  "),
        cell(event.type, "bold"),
        cell(f"  {json_text(plain(event.data))}", "dim"),
    )
    console().print(line, soft_wrap=True)
