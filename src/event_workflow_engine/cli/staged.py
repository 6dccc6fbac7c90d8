"""`ewe db staged`: what users' transactions staged and the store refused, and what is to become of it."""

from typing import Annotated, Any, Final

import msgspec
from cyclopts import App, Parameter

from event_workflow_engine.cli.opening import opened
from event_workflow_engine.cli.options import COMMON, Common, Limit
from event_workflow_engine.cli.output import cell, console, print_json, print_rows
from event_workflow_engine.clock import told
from event_workflow_engine.errors import DefinitionError
from event_workflow_engine.refusals import Refusal, Refusals

__all__ = ["app"]

app: Final = App(name="staged", help="What enlisted transactions staged and the store refused: list, retry, drop.")

_PAGE: Final = 500


Id = Annotated[str, Parameter(help="Which: ids of the list.")]
All = Annotated[bool, Parameter(name="--all", negative="", help="All that was refused.")]


@app.command(name="list")
@app.default
async def list_(*, after: str = "", limit: Limit = 50, common: Common = COMMON) -> None:  # noqa: D417 - shared options tell of themselves
    """List what was refused, in the order in which it was staged, a page at a time.

    Args:
        after: Only what is behind this id: the `next` of the page before.
    """
    async with opened(common.url) as storage:
        found = await Refusals(storage).list(after=after, limit=limit + 1)
        (counts,) = await storage.query("backlog_counts", limit=_PAGE)
    page, more = found[:limit], len(found) > limit
    last = page[-1].id if more else None
    if common.as_json:
        print_json({"refused": [msgspec.to_builtins(one) for one in page], "next": last, "waiting": counts["staged"]})
        return
    print_rows(("id", "what", "staged", "why it was refused"), [_cells(one) for one in page])
    if last is not None:
        console().print(cell(f"more: --after {last}", "dim"))
    if counts["staged"]:
        least = "at least " if counts["staged"] == _PAGE else ""
        said = f"{least}{counts['staged']} staged and not refused: a process that has entered an engine moves them"
        console().print(cell(said, "dim"))


def _cells(one: Refusal) -> tuple[Any, ...]:
    return cell(one.id), cell(one.what), cell(told(one.staged_at), "dim"), cell(one.reason)


@app.command(name="retry")
async def retry(*ids: Id, all: All = False, common: Common = COMMON) -> None:  # noqa: A002
    """Have it tried again, by any process that has entered an engine: what was in its way may be gone."""
    await _each(ids, "retry", every=all, common=common)


@app.command(name="drop")
async def drop(*ids: Id, all: All = False, common: Common = COMMON) -> None:  # noqa: A002
    """Forget it: it never happens."""
    await _each(ids, "drop", every=all, common=common)


async def _each(ids: tuple[str, ...], what: str, *, every: bool, common: Common) -> None:
    if every == bool(ids):
        raise DefinitionError(f"ewe db staged {what}: name ids of ewe db staged, or --all")
    async with opened(common.url) as storage:
        refusals = Refusals(storage)
        if every:
            ids = await _all_ids(refusals)
        for one in ids:
            await (refusals.retry(one) if what == "retry" else refusals.drop(one))
    if common.as_json:
        print_json({"ids": list(ids), what: True})
    else:
        done = "are tried again; see: ewe db staged" if what == "retry" else "dropped"
        console().print(cell(f"{len(ids)} {done}"))


async def _all_ids(refusals: Refusals) -> tuple[str, ...]:
    """As they are now: what is refused again meanwhile is not tried for ever."""
    ids: list[str] = []
    while page := await refusals.list(after=ids[-1] if ids else "", limit=_PAGE):
        ids += [one.id for one in page]
    return tuple(ids)
